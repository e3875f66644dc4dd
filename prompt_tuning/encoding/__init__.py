"""Turn rows into token ids within a budget."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.encoding.dataset import EncodingReport, encode
    from prompt_tuning.encoding.demonstrations import Demonstrations
    from prompt_tuning.encoding.row_encoder import Encoder
    from prompt_tuning.encoding.streaming import StreamReport, encode_stream

__all__ = ["Demonstrations", "Encoder", "EncodingReport", "StreamReport", "encode", "encode_stream"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Demonstrations": "demonstrations",
        "Encoder": "row_encoder",
        "EncodingReport": "dataset",
        "StreamReport": "streaming",
        "encode": "dataset",
        "encode_stream": "streaming",
    },
)
