from surge_det.cli.tables import markdown_table, print_table


def test_markdown_table():
    assert markdown_table(['a', 'b'], [['x', 1], ['y', '—']]) == (
        '| a | b |\n|---|---|\n| x | 1 |\n| y | — |'
    )


def test_printed_table_is_whole_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    print_table(['layer', 'ms'], [['x' * 150, 1.5], ['[red]', 22]])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if 'x' * 150 in line]
    assert row.rstrip().endswith(' 1.5')
    assert any('[red]' in line and '  22' in line for line in lines)
