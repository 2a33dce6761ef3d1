import pytest

from surge_det.text import brief, printable, shortened


def test_what_is_no_character_to_see_is_escaped():
    text = 'a\x1b[2J\tb\x7f\u202e\ud800\n\u00e9\u4e2d \\x1b'
    seen = 'a\\x1b[2J\\tb\\x7f\\u202e\\ud800\n\u00e9\u4e2d \\x1b'
    assert printable(text) == seen


def test_messages_are_short_and_on_one_line():
    assert shortened('a\n  b\x1b') == 'a b\\x1b'
    assert shortened('x' * 300) == 'x' * 300
    assert shortened('x' * 301) == 'x' * 300 + ' ...'
    assert len(shortened('\x1b' * 300)) == 304


def nested():
    value = ['x']
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        (3, '3'),
        ({'id': 1, 'name': 'a\n\x1b'}, r"{'id': 1, 'name': 'a\n\x1b'}"),
        (10**5000, 'a large int'),
        (nested(), '[[[[[[[...], [...]]'),
        (['x' * 10**6] * 10**6, "['xxx"),
    ],
    ids=['number', 'dict', 'digits', 'nested', 'long'],
)
def test_values_are_written_short(value, said):
    assert brief(value).startswith(said)
    assert len(brief(value)) < 310
