"""The digits recipe at a size of seconds."""

from configs import digits_prc

STEPS = 6


def small_config(digits_dir, arguments="", **changes):
    config = digits_prc.get_config(arguments)
    with config.unlocked():
        config.train_steps = STEPS
        config.model.update({"hidden_size": 16, "patch_size": (8, 8)})
        config.model.encoder.update({"num_layers": 2, "mlp_dim": 32})
        config.model.encoder.moe.update({"layers": (1,), "group_size": 17 * 4, "dropout_rate": 0.1})
        config.optimizer.learning_rate.warmup_steps = 2
        config.evaluate.every_steps = 4
        config.save_checkpoint.update({"every_steps": 3, "keep_last": 3})
        config.report_progress.every_steps = 2
        config.update_from_flattened_dict(changes)
        for dataset in config.dataset.values():
            dataset.data_dir = digits_dir
    return config
