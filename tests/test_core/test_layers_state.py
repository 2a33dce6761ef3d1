"""State dicts, initialization, copies: when the replica follows."""

import copy
import io
import logging
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, run_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from surge_det.core import SURGEConv2d, SURGELinear


def build(kind, **kwargs):
    if kind == 'conv':
        return SURGEConv2d(4, 6, 3, **kwargs)
    return SURGELinear(4, 6, **kwargs)


def float_twin(kind, **kwargs):
    return nn.Conv2d(4, 6, 3, **kwargs) if kind == 'conv' else nn.Linear(4, 6)


def batch(kind):
    return torch.randn((2, 4, 5, 5) if kind == 'conv' else (3, 4))


def train_step(layer, kind, lr=0.1):
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    layer.zero_grad()
    layer(batch(kind)).pow(2).sum().backward()
    optimizer.step()


both = pytest.mark.parametrize('kind', ['conv', 'linear'])


# State dicts


@both
@pytest.mark.parametrize('assign', [True, False])
def test_round_trip(kind, assign):
    layer = build(kind)
    for _ in range(2):
        train_step(layer, kind)
    assert not torch.equal(layer.weight, layer.aux_weight)
    other = build(kind)
    result = other.load_state_dict(
        copy.deepcopy(layer.state_dict()), strict=True, assign=assign
    )
    assert not result.missing_keys
    assert not result.unexpected_keys
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@both
def test_round_trip_through_a_file_with_weights_only(kind):
    layer = build(kind)
    train_step(layer, kind)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = build(kind)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.aux_weight, layer.aux_weight)


@both
@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('assign', [True, False])
@pytest.mark.parametrize('trained', [True, False])
def test_float_models_weights_go_into_the_replica(
    kind, strict, assign, trained
):
    layer = build(kind)
    if trained:
        train_step(layer, kind)
    source = float_twin(kind)
    state = source.state_dict()
    result = layer.load_state_dict(state, strict=strict, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert set(state) == {'weight', 'bias'}
    layer(batch(kind))
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.aux_weight, source.weight)
    assert layer.aux_weight.data_ptr() != layer.weight.data_ptr()
    assert isinstance(layer.aux_weight, nn.Parameter)
    train_step(layer, kind)
    assert not torch.equal(layer.weight, layer.aux_weight)


def test_float_state_dict_in_a_nested_module():
    def net(conv, linear):
        return nn.Sequential(
            conv(4, 6, 3), nn.Sequential(nn.Flatten(), linear(54, 2))
        )

    source = net(nn.Conv2d, nn.Linear)
    target = net(SURGEConv2d, SURGELinear)
    result = target.load_state_dict(source.state_dict(), strict=True)
    assert not result.missing_keys
    target(batch('conv'))
    assert torch.equal(target[0].aux_weight, source[0].weight)
    assert torch.equal(target[1][1].aux_weight, source[1][1].weight)


@both
def test_other_missing_and_unexpected_keys_are_still_reported(kind):
    layer = build(kind)
    state = float_twin(kind).state_dict()
    state['surprise'] = torch.zeros(1)
    del state['bias']
    result = layer.load_state_dict(state, strict=False)
    assert result.missing_keys == ['bias']
    assert result.unexpected_keys == ['surprise']
    with pytest.raises(RuntimeError, match='bias'):
        layer.load_state_dict(state)


@both
def test_a_missing_weight_is_reported(kind):
    layer = build(kind)
    kept = layer.aux_weight.detach().clone()
    result = layer.load_state_dict(
        {'bias': layer.bias.detach().clone()}, strict=False
    )
    assert 'weight' in result.missing_keys
    assert torch.equal(layer.aux_weight, kept)


@both
def test_a_weight_of_another_shape_is_an_error(kind):
    layer = build(kind)
    state = float_twin(kind).state_dict()
    state['weight'] = state['weight'][:3]
    with pytest.raises(RuntimeError, match='size mismatch for weight'):
        layer.load_state_dict(state)


@both
def test_without_compensation_a_float_state_dict_is_complete(kind):
    layer = build(kind, compensate=False)
    source = float_twin(kind)
    layer.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(layer.weight, source.weight)
    assert set(layer.state_dict()) == set(source.state_dict())


@both
def test_resume_keeps_the_saved_replica_through_the_first_step(kind):
    source = build(kind)
    for _ in range(2):
        train_step(source, kind)
    layer = build(kind)
    nn.init.normal_(layer.weight)
    layer.load_state_dict(source.state_dict())
    layer(batch(kind))
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.aux_weight, source.aux_weight)
    assert not torch.equal(layer.aux_weight, layer.weight)


@both
@pytest.mark.parametrize('trained', [True, False])
@pytest.mark.parametrize('write', [False, True])
def test_a_state_saved_before_the_first_step_has_no_stale_replica(
    kind, trained, write
):
    layer = build(kind)
    nn.init.normal_(layer.weight)
    other = build(kind)
    if trained:
        train_step(other, kind)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    if write:
        via_data(other)
    other(batch(kind))
    assert torch.equal(other.aux_weight, other.weight)


# Initialization after construction


def via_init(layer):
    nn.init.kaiming_normal_(layer.weight)


def via_no_grad(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))


def via_data(layer):
    layer.weight.data.normal_(0, 0.01)


def via_data_assignment(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def via_new_parameter(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def via_reset(layer):
    layer.reset_parameters()


def via_vector(layer):
    chosen = [layer.weight]
    vector = torch.randn(layer.weight.numel())
    nn.utils.vector_to_parameters(vector, chosen)


WRITERS = [
    via_init,
    via_no_grad,
    via_data,
    via_data_assignment,
    via_new_parameter,
    via_reset,
    via_vector,
]


@both
@pytest.mark.parametrize('write', WRITERS)
def test_replica_follows_any_initializer_until_the_first_step(kind, write):
    layer = build(kind)
    before = layer.weight.detach().clone()
    write(layer)
    write(layer)
    assert not torch.equal(layer.weight, before)
    wanted = layer.weight.detach().clone()
    layer(batch(kind)).sum().backward()
    assert torch.equal(layer.weight, wanted)
    assert torch.equal(layer.aux_weight, wanted)
    assert layer.aux_weight.grad is not None


@both
@pytest.mark.parametrize('write', [w for w in WRITERS if w is not via_reset])
def test_after_the_first_step_it_goes_its_own_way(kind, write):
    layer = build(kind)
    train_step(layer, kind)
    kept = layer.aux_weight.detach().clone()
    write(layer)
    layer(batch(kind))
    assert torch.equal(layer.aux_weight, kept)


@both
@pytest.mark.parametrize('on_meta', [True, False])
def test_reset_parameters_begins_again(kind, on_meta):
    layer = build(kind)
    train_step(layer, kind)
    if on_meta:
        layer = layer.to('meta').to_empty(device='cpu')
        nn.init.constant_(layer.aux_weight, 7.0)
    layer.reset_parameters()
    layer(batch(kind))
    assert torch.equal(layer.aux_weight, layer.weight)
    assert layer.weight.any()


@both
@pytest.mark.parametrize('still', ['zero eta', 'frozen replica'])
def test_a_replica_that_never_moves_stays_where_training_began(kind, still):
    layer = build(kind)
    if still == 'zero eta':
        layer.ags.eta = 0
    else:
        layer.aux_weight.requires_grad_(False)
    via_init(layer)
    start = layer.weight.detach().clone()
    for _ in range(2):
        train_step(layer, kind)
    assert not torch.equal(layer.weight, start)
    assert torch.equal(layer.aux_weight, start)
    assert torch.equal(layer.state_dict()['aux_weight'], start)


@both
def test_the_optimizers_replica_is_the_one_that_follows(kind):
    # An optimizer built before the first step holds the same tensor.
    layer = build(kind)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    via_init(layer)
    start = layer.weight.detach().clone()
    layer(batch(kind)).pow(2).sum().backward()
    optimizer.step()
    change = start - 0.1 * layer.aux_weight.grad
    torch.testing.assert_close(layer.aux_weight.detach(), change)


@both
def test_eval_forward_does_not_end_the_following(kind):
    layer = build(kind).eval()
    layer(batch(kind))
    with torch.inference_mode():
        layer(batch(kind))
    via_init(layer)
    layer.train()(batch(kind)).sum().backward()
    assert torch.equal(layer.aux_weight, layer.weight)


@both
def test_copies_and_conversions_do_not_end_the_following(kind):
    layer = pickle.loads(pickle.dumps(copy.deepcopy(build(kind)))).double()
    if kind == 'conv':
        layer.to(memory_format=torch.channels_last)
    via_init(layer)
    layer(batch(kind).double()).sum().backward()
    assert torch.equal(layer.aux_weight, layer.weight)


@both
def test_copy_made_after_the_initialization(kind):
    layer = build(kind)
    via_init(layer)
    twin = copy.deepcopy(layer)
    twin(batch(kind))
    assert torch.equal(twin.weight, layer.weight)
    assert torch.equal(twin.aux_weight, layer.weight)


def write_no_grad(layer):
    with torch.no_grad():
        layer.aux_weight.fill_(0.25)


def write_init(layer):
    nn.init.constant_(layer.aux_weight, 0.25)


def write_data(layer):
    layer.aux_weight.data.fill_(0.25)


def write_data_assignment(layer):
    layer.aux_weight.data = torch.full_like(layer.aux_weight, 0.25)


def write_parameter(layer):
    layer.aux_weight = nn.Parameter(torch.full_like(layer.aux_weight, 0.25))


@both
@pytest.mark.parametrize('order', ['aux only', 'aux last', 'weight last'])
@pytest.mark.parametrize(
    'write',
    [
        write_no_grad,
        write_init,
        write_data,
        write_data_assignment,
        write_parameter,
    ],
)
def test_a_replica_written_on_purpose_is_kept(kind, write, order):
    layer = build(kind)
    if order == 'aux last':
        via_init(layer)
    write(layer)
    if order == 'weight last':
        via_init(layer)
    layer(batch(kind)).sum().backward()
    assert torch.equal(
        layer.aux_weight, torch.full_like(layer.aux_weight, 0.25)
    )
    assert layer.aux_weight.grad is not None


# Beginning for all layers at once


@both
def test_it_begins_as_a_copy_whatever_wrote_all_parameters(kind):
    # As mmdet's DETR and DINO do.
    layer = build(kind)
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    layer.begin_training()
    assert torch.equal(layer.aux_weight, layer.weight)


@both
@pytest.mark.parametrize('how', ['loaded', 'copied', 'trained', 'begun'])
def test_it_begins_once(kind, how):
    layer = build(kind)
    if how == 'begun':
        layer.begin_training()
    else:
        train_step(layer, kind)
    start = layer.aux_weight.detach().clone()
    if how == 'loaded':
        state, layer = layer.state_dict(), build(kind)
        layer.load_state_dict(state)
    elif how == 'copied':
        layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    via_init(layer)
    layer.begin_training()
    assert torch.equal(layer.aux_weight, start)


@both
@pytest.mark.parametrize('state', ['float', 'not begun'])
def test_it_begins_again_after_loading(kind, state):
    layer = build(kind)
    layer.begin_training()
    source = float_twin(kind) if state == 'float' else build(kind)
    layer.load_state_dict(source.state_dict())
    layer.begin_training()
    assert torch.equal(layer.aux_weight, source.weight)


def test_without_replica_nothing_begins():
    layer = build('linear', compensate=False)
    layer.begin_training()
    assert layer.aux_weight is None


@both
@pytest.mark.parametrize('parameter', [True, False])
def test_other_parameters_in_its_place_begin_for_themselves(kind, parameter):
    layer = build(kind)
    own = {k: v.detach().clone() for k, v in layer.named_parameters()}
    for key, value in own.items():
        own[key] = nn.Parameter(value) if parameter else value.requires_grad_()
    torch.func.functional_call(layer, own, (batch(kind),)).sum().backward()
    assert torch.equal(own['aux_weight'], own['weight'])
    assert not layer.aux_weight.any()
    layer(batch(kind)).sum().backward()
    assert torch.equal(layer.aux_weight, layer.weight)


@pytest.mark.parametrize('use_buffers', [True, False])
def test_average_of_the_replica_is_kept(use_buffers):
    # The copy is made before training, and never trains itself.
    layer = build('conv')
    average = torch.optim.swa_utils.AveragedModel(
        layer, use_buffers=use_buffers
    )
    for _ in range(3):
        train_step(layer, 'conv')
        average.update_parameters(layer)
    state = average.module.state_dict()
    assert not torch.equal(state['aux_weight'], state['weight'])
    other = build('conv')
    other.load_state_dict(state)
    other(batch('conv'))
    assert torch.equal(other.aux_weight, average.module.aux_weight)


@both
def test_a_loaded_replica_is_kept_when_weights_change_afterwards(kind):
    source = build(kind)
    train_step(source, kind)
    layer = build(kind)
    layer.load_state_dict(source.state_dict())
    via_init(layer)
    layer(batch(kind))
    assert torch.equal(layer.aux_weight, source.aux_weight)


@both
def test_loading_one_key_only_keeps_that_replica(kind):
    layer = build(kind)
    replica = torch.full_like(layer.aux_weight, 0.25)
    layer.load_state_dict({'aux_weight': replica}, strict=False)
    layer(batch(kind))
    assert torch.equal(layer.aux_weight, replica)


# mmengine's own initializers and loader


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Kaiming', layer=['Conv2d', 'Linear']),
        dict(type='Normal', layer=['Conv2d', 'Linear'], std=0.5),
        dict(type='Xavier', layer=['Conv2d', 'Linear']),
        dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.5),
        dict(type='Constant', layer=['Conv2d', 'Linear'], val=0.5),
        dict(type='Normal', layer=['SURGEConv2d', 'SURGELinear'], std=0.5),
    ],
    ids=lambda cfg: cfg['type'],
)
def test_mmengine_initializers_match_the_layer(init_cfg):
    pytest.importorskip('mmengine')
    from mmengine.model import initialize

    model = nn.Sequential(SURGEConv2d(4, 6, 3), SURGELinear(4, 6))
    before = [m.weight.detach().clone() for m in model]
    initialize(model, init_cfg)
    for kind, layer, old in zip(('conv', 'linear'), model, before):
        assert not torch.equal(layer.weight, old)
        layer(batch(kind)).sum().backward()
        assert torch.equal(layer.aux_weight, layer.weight)


def test_mmengine_pretrained(tmp_path):
    pytest.importorskip('mmengine')
    from mmengine.model import initialize

    source = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(4, 6))
    file = tmp_path / 'float.pth'
    torch.save(source.state_dict(), file)
    model = nn.Sequential(SURGEConv2d(4, 6, 3), SURGELinear(4, 6))
    initialize(model, dict(type='Pretrained', checkpoint=str(file)))
    for kind, layer, origin in zip(('conv', 'linear'), model, source):
        layer(batch(kind))
        assert torch.equal(layer.weight, origin.weight)
        assert torch.equal(layer.aux_weight, origin.weight)


def test_mmengine_loader_reports_nothing_missing(caplog):
    pytest.importorskip('mmengine')
    from mmengine.runner.checkpoint import load_state_dict

    source = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(4, 6))
    model = nn.Sequential(SURGEConv2d(4, 6, 3), SURGELinear(4, 6))
    logger = logging.getLogger('surge_det_test')
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        load_state_dict(model, source.state_dict(), True, logger)
    assert not caplog.records
    model[1](batch('linear'))
    assert torch.equal(model[1].aux_weight, source[1].weight)
    # The check itself sees a key that is missing.
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        partial = {'0.weight': source[0].weight.detach()}
        load_state_dict(model, partial, False, logger)
    assert 'missing keys' in caplog.text
    assert '0.aux_weight' not in caplog.text


# Several processes


class _Skippable(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 3, 1), layer

    def forward(self, x, skip):
        x = self.first(x)
        return x if skip else self.layer(x)


def _train_in_group(rank, world, folder, how):
    torch.manual_seed(rank)
    layer = SURGEConv2d(3, 4, 3, eta=0.3)
    nn.init.normal_(layer.weight)
    skips = how == 'rank 1 skips it'
    loaded = how == 'loaded on rank 0'
    if loaded and rank == 0:
        state = layer.state_dict()
        layer.load_state_dict({k: v + 1 for k, v in state.items()})
    model = DistributedDataParallel(
        _Skippable(layer), find_unused_parameters=skips
    )
    if skips:
        layer.begin_training()
    start = layer.weight.detach().clone()
    if loaded:
        start = torch.ones_like(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        skip = skips and rank == 1 and step == 0
        model(torch.randn(2, 3, 5, 5), skip).pow(2).sum().backward()
        if step == 0:
            assert torch.equal(layer.aux_weight, start), 'replica at start'
        optimizer.step()
    for name, parameter in layer.named_parameters():
        gathered = [torch.empty_like(parameter) for _ in range(world)]
        dist.all_gather(gathered, parameter.detach())
        assert torch.equal(*gathered), f'{name} differs between ranks'
        assert parameter.grad is not None, name
    assert not torch.equal(layer.weight, start)


@needs_gloo
@pytest.mark.parametrize('how', ['new', 'loaded on rank 0', 'rank 1 skips it'])
def test_two_processes_agree(tmp_path, how):
    run_processes(partial(_train_in_group, how=how), tmp_path)


def test_partial_load_leaves_a_trained_replica_alone():
    torch.manual_seed(0)
    model = nn.Sequential(SURGEConv2d(2, 3, 3), nn.Conv2d(3, 2, 1))
    model(torch.randn(1, 2, 5, 5)).sum().backward()
    with torch.no_grad():
        model[0].aux_weight.add_(1)
    before = model[0].aux_weight.detach().clone()
    other = {f'1.{k}': v for k, v in model[1].state_dict().items()}
    model.load_state_dict(other, strict=False)
    assert torch.equal(model.state_dict()['0.aux_weight'], before)


@pytest.mark.parametrize('how', ['strip', 'compensate=False'])
def test_layer_without_replica_takes_a_surge_checkpoint(how):
    trained = SURGEConv2d(2, 3, 3)
    if how == 'strip':
        layer = SURGEConv2d(2, 3, 3).strip()
    else:
        layer = SURGEConv2d(2, 3, 3, compensate=False)
    layer.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(layer.weight, trained.weight)
    assert layer.aux_weight is None
    assert not list(layer.buffers())


def test_from_float_keeps_the_memory_format():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    layer = SURGEConv2d.from_float(conv)
    for weight in (layer.weight, layer.aux_weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
