"""The request that a format of `config.registry.EXPORTS` gets."""

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """One export.

    Attributes:
      source: Work directory or checkpoint.
      target: File or folder to write.
      config: Configuration of a checkpoint that has none with it; None for its own.
      license: Identifier of the licence of the parameters, such as 'apache-2.0'; None if it
        is not known.
    """

    source: str
    target: str
    config: ml_collections.ConfigDict | None = None
    license: str | None = None
