from typing import Any

DEFINE_config_file: Any
