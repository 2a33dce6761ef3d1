"""Let configs have shipped ones as base: ``_base_ = 'surge_det::NAME.py'``.

mmengine resolves ``PACKAGE::`` for its own packages only, and wants a folder
in front of the name.
"""

from types import ModuleType

from surge_det.shipped import shipped_config

PREFIX = 'surge_det::'


def install(module: ModuleType) -> None:
    """Teach ``Config`` the prefix.

    Args:
        module: ``mmengine.config.config``.
    """
    resolve = module.Config._get_cfg_path
    if getattr(resolve, 'knows_surge_det', False):
        return

    def resolve_ours_too(
        cfg_path: str, filename: str
    ) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            # No scope: what the base names is mmdet's, as in the config.
            return str(shipped_config(cfg_path.removeprefix(PREFIX))), None
        return resolve(cfg_path, filename)

    resolve_ours_too.knows_surge_det = True
    module.Config._get_cfg_path = staticmethod(resolve_ours_too)
