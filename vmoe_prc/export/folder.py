"""Export to a self-contained folder: all that opening the model, or judging it, needs."""

import json
import os

from etils import epath

from vmoe_prc.checkpoints.params import read_params, write_params
from vmoe_prc.checkpoints.request import ExportRequest
from vmoe_prc.config import ConfigError
from vmoe_prc.config.registry import EXPORTS
from vmoe_prc.export.model_card import model_card
from vmoe_prc.predict.model import open_model
from vmoe_prc.workdir.atomic import atomic_write
from vmoe_prc.workdir.layout import (
    CARD_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    PARAMS_FILE,
    PREPROCESSING_FILE,
)
from vmoe_prc.workdir.paths import user_path


@EXPORTS.register("folder")
def export_folder(request: ExportRequest) -> list[str]:
    """Writes the folder TARGET, which `vmoe_prc.open` opens; returns the paths of its files.

    Raises:
      ConfigError: If the folder has files and is no earlier export.
    """
    folder = user_path(request.target)
    if folder.exists() and not (folder / PREPROCESSING_FILE).exists() and list(folder.iterdir()):
        raise ConfigError("TARGET", os.fspath(folder), "has files that are no exported model")
    model = open_model(request.source, request.config)
    config = json.loads(json.dumps(model.config.to_dict(), default=list))
    params = read_params(request.source)
    write_params(folder / PARAMS_FILE, params, {"config": config, "classes": model.classes})
    texts = {
        CONFIG_FILE: json.dumps(config, indent=2),
        CLASSES_FILE: json.dumps(model.classes, indent=2, ensure_ascii=False),
        PREPROCESSING_FILE: json.dumps(model.preprocessing.describe(model.image_size), indent=2),
        CARD_FILE: model_card(model, epath.Path(request.source), request.license),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text + "\n")
    return [os.fspath(folder / name) for name in (PARAMS_FILE, *texts)]
