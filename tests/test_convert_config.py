"""Config files in the words of the released programs run as they are.

The files are written here, with the vocabulary and structure of google-research/vmoe and
m82kada/PRC; `benchmarks.released_configs` walks the files of the programs themselves.
"""

import re

import pytest

from vmoe_prc.config import ConfigError, complete, override
from vmoe_prc.config.files import read_config_file
from vmoe_prc.convert_config import RefusedConfigError, main

COMMON = """
import ml_collections

def get_model(num_classes, **moe):
    return ml_collections.ConfigDict({
        'name': 'VisionTransformerMoe', 'num_classes': num_classes, 'patch_size': (8, 8),
        'hidden_size': 32, 'classifier': 'token', 'representation_size': None,
        'encoder': {
            'num_layers': 8, 'num_heads': 4, 'mlp_dim': 64, 'dropout_rate': 0.1,
            'moe': {
                'num_experts': 4, 'layers': (5, 7), 'group_size': 34, 'split_rngs': False,
                'router': {
                    'num_selected_experts': 2, 'noise_std': 1.0,
                    'importance_loss_weight': 0.005, 'load_loss_weight': 0.003,
                    'dispatcher': {
                        'name': 'indices', 'bfloat16': True, 'capacity_factor': 1.05,
                        'partition_spec': (('expert', 'replica'),), 'batch_priority': False,
                    },
                    **moe,
                },
            },
        },
    })

def get_data(split, process, **options):
    return ml_collections.ConfigDict(
        {'name': 'cifar10', 'split': split, 'process': process, 'batch_size': 64, **options})
"""
VMOE = """
import jax
import ml_collections
from vmoe.configs.some_paper import common

PP = 'value_range(-1,1)|onehot(10, inkey="label", outkey="labels")|keep("image", "labels")'

def get_config():
    config = ml_collections.ConfigDict()
    config.dataset = ml_collections.ConfigDict()
    config.dataset.train = common.get_data(
        'train', 'decode_jpeg_and_inception_crop(resize_size=32)|flip_lr|randaug(2, 10)|' + PP,
        prefetch='autotune', data_dir=None)
    config.dataset.val = common.get_data(
        'test', 'decode|resize(32, resize_method="area")|' + PP, cache='batched',
        shuffle_buffer=None)
    config.loss = ml_collections.ConfigDict({'name': 'sigmoid_xent'})
    config.model = common.get_model(10)
    config.train_epochs = 2
    config.optimizer = ml_collections.ConfigDict({
        'name': 'sgd', 'momentum': 0.9, 'accumulator_dtype': 'float32',
        'gradient_clip': {'global_norm': None},
        'learning_rate': {'schedule': 'warmup_cosine_decay', 'peak_value': 0.003,
                          'end_value': 1e-5, 'warmup_steps': 50},
    })
    config.mixup = ml_collections.ConfigDict({'concentration': 0.5, 'mixup_size': 2})
    config.initialization = ml_collections.ConfigDict({
        'name': 'initialize_from_vmoe', 'prefix': 'gs://bucket/model',
        'rules': [('head', ''), ('^(.*)$', r'params/\\1')],
        'raise_if_target_unmatched': False,
        'axis_resources_regexes': [('Moe/Mlp/.*', ('expert',))],
    })
    config.num_expert_partitions = 4 * jax.local_device_count()
    config.params_axis_resources = [('Moe/Mlp/.*', ('expert',))]
    config.extra_rng_keys = ('dropout', 'gating', 'mixup')
    config.save_checkpoint = ml_collections.ConfigDict(
        {'every_steps': 100, 'keep_last': 1, 'wait_seconds': 300})
    config.report_progress = ml_collections.ConfigDict({'every_secs': None, 'every_steps': 10})
    config.profile = ml_collections.ConfigDict(
        {'all_processes': False, 'num_profile_steps': 5, 'first_profile': 10, 'every_secs': 3600.})
    config.evaluate = ml_collections.ConfigDict({'every_steps': 100})
    config.fewshot = ml_collections.ConfigDict({
        'datasets': {'pets': ('oxford_iiit_pet', 'train', 'test'),
                     'uc': ('uc_merced', 'train[:1000]', 'train[1000:]')},
        'batch_size': 64, 'process': 'decode|resize(32)|value_range(-1,1)|keep("image", "label")',
        'cache': 'loaded', 'main_task': ('pets', 10), 'seeds_per_step': 3,
        'shots': [1, 5], 'model_overrides': {'num_classes': None}})
    config.seed = 3
    return config
"""
PRC = """
import ml_collections
from vmoe.configs.some_paper import common, vmoe_like

def get_config():
    config = vmoe_like.get_config()
    config.dataset.train.process = (
        'onehot(10, inkey="label", outkey="labels")|OP|value_range(-1, 1)|'
        'keep("image", "labels", "R")')
    config.dataset.val.process = config.dataset.val.process.replace(
        'keep("image", "labels")', 'keep("image", "labels", "R")')
    config.mixup = None
    config.patch_correspondence = ml_collections.ConfigDict({'cls_correspondence': True})
    with config.unlocked():
        router = config.model.encoder.moe.router
        router.additional_losses = [
            ('matrix_top1_diagonal', 5e-3), ('matrix_top1_offdiagonal', 5e-2), ('entropy', 0)]
        router.similarity_loss_layer = LAYERS
        router.teacher_student = False
        router.stop_grad = False
        config.model.image_size = 32
        config.dataset.train.contrastive = True
        config.dataset.train.mixup_process = ''
    return config
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "vmoe" / "configs" / "some_paper"
    folder.mkdir(parents=True)
    (tmp_path / "vmoe" / "__init__.py").write_text("raise RuntimeError('their package runs')")
    (folder / "common.py").write_text(COMMON)
    (folder / "vmoe_like.py").write_text(VMOE)
    return folder


def read(path, text=None):
    if text is not None:
        path.write_text(text)
    return complete(read_config_file(str(path), "--config"))


def test_a_file_of_v_moe_runs_as_it_is(checkout, capsys):
    config = read(checkout / "vmoe_like.py")
    train, val = config.dataset.train, config.dataset.val
    assert train.shuffle_buffer == 50_000 and val.shuffle_buffer == 0 and val.cache is None
    assert "resize(32, resize_method='area', truncate=True)" in val.process
    assert "inception_crop(resize_size=32, truncate=True)" in train.process
    assert (train.unlabelled, val.unlabelled) == ("left_out", "wrong")
    assert "resize(32, truncate=True)" in config.fewshot.process
    moe = config.model.encoder.moe
    assert moe.dropout_rate == 0.1 and moe.router.dispatcher.name == "gather"
    assert config.auxiliary_loss.importance_loss_weight == 0.005
    assert config.auxiliary_loss.load_loss_weight == 0.003
    assert config.mixup.size == 2 and config.consistency is None
    assert config.num_expert_partitions == "auto"
    assert config.fewshot.datasets.pets == (
        "oxford_iiit_pet",
        "train[:90%]",
        "train[90%:]",
        "test",
    )
    assert config.fewshot.datasets.uc[1:3] == ("train[:900]", "train[900:1000]")
    assert config.initialization.rules == (("head", ""), ("^(.*)$", r"params/\1"))
    notes = capsys.readouterr().err
    assert "config.profile.every_secs: left out: intervals are counted in steps" in notes
    changed = override(config, {"optimizer": {"momentum": 0.5}, "mixup": None})
    assert complete(changed).optimizer.momentum == 0.5


@pytest.mark.parametrize(
    ("op", "views"),
    [
        ("decode_and_ssl_augment(32)", "two_views(32, (5, 70), (60, 100), truncate=True)|flip_lr"),
        (
            "decode_jpeg_and_ssl_augment(32, area_max=50)",
            "two_views(32, (5, 50), (60, 100), truncate=True)",
        ),
        (
            "decode_jpeg_and_randaug_ssl(32, 2, 15,area_min=5,area_max=100,area2_min=5)",
            "(5, 100), (5, 100), truncate=True)|flip_lr|randaug(2, 15, variant='prc')",
        ),
    ],
)
def test_a_file_of_prc_runs_as_it_is(checkout, op, views):
    text = PRC.replace("OP", op).replace("LAYERS", "[6]")
    config = read(checkout / "prc.py", text)
    assert views in config.dataset.train.process
    assert config.dataset.train.process.endswith("keep('image', 'labels', 'view_from_image')")
    assert config.dataset.val.process.endswith("keep('image', 'labels')")
    loss = config.consistency
    assert (loss.name, loss.diagonal, loss.pair_class_tokens) == ("prc", "per_position", True)
    assert (loss.diagonal_weight, loss.off_diagonal_weight) == (5e-3, 5e-2)
    # Theirs counts blocks from 1.
    assert loss.blocks == (5,)


def test_all_refusals_come_at_once(checkout):
    text = PRC.replace("OP", "tokenize(16)").replace("LAYERS", "[6, 8]")
    text = text.replace("    return", "    config.model.encoder.sparkle = 3\n    return")
    text = text.replace("stop_grad = False", "stop_grad = True").replace("'entropy', 0", "'x', 1")
    with pytest.raises(RefusedConfigError) as error:
        read(checkout / "prc.py", text)
    lines = str(error.value).splitlines()
    assert re.search(r"prc.py: 4 fields have no counterpart here", lines[0])
    assert [line.split(" = ")[0].strip() for line in lines[1:]] == [
        "config.dataset.train.process",
        "config.model.encoder.moe.router.stop_grad",
        "config.model.encoder.moe.router.additional_losses",
        "config.model.encoder.sparkle",
    ]
    assert all(": write " in line for line in lines[1:])


def test_routers_compute_in_the_type_of_the_blocks(checkout):
    text = VMOE.replace("    return", "    config.model.encoder.dtype = 'bfloat16'\n    return")
    model = read(checkout / "narrow.py", text).model
    assert model.dtype == "float32"
    assert model.encoder.dtype == model.encoder.moe.router.dtype == "bfloat16"


def test_the_written_file_has_the_same_fields(checkout, tmp_path, capsys):
    config = read(checkout / "vmoe_like.py")
    capsys.readouterr()
    assert main([str(checkout / "vmoe_like.py")]) == 0
    (tmp_path / "written").mkdir()
    assert read(tmp_path / "written" / "ours.py", capsys.readouterr().out) == config


def test_a_file_without_its_checkout_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"imports vmoe.*keep the file in its checkout"):
        read(tmp_path / "alone.py", VMOE)
