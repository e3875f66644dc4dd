"""Check model cards the way the hub reads them."""

from huggingface_hub import ModelCard


def check_card(path):
    """Check that huggingface_hub reads a card's metadata and writes it unchanged, and that no placeholder is in it."""
    text = path.read_text(encoding="utf-8")
    card = ModelCard(text)  # It parses the model-index too. ModelCard.validate would ask the hub.
    assert card.data.to_yaml(original_order=card._original_order) == text.split("\n---\n")[0].removeprefix("---\n")
    assert not [word for word in ("More Information Needed", "[Needs", "[needs", "Undefined", "None") if word in text]
    assert card.data.library_name in ("peft", "transformers") and card.data.tags
    return card
