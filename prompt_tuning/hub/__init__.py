"""Download adapters from the Hugging Face hub and upload runs to it."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.hub.download import adapter_folder
    from prompt_tuning.hub.upload import plan_upload, push

__all__ = ["adapter_folder", "plan_upload", "push"]

__getattr__, __dir__ = lazy_names(__name__, {"adapter_folder": "download", "plan_upload": "upload", "push": "upload"})
