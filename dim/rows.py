"""Row conservation: what goes into a job comes out of it, each row once."""

from collections import Counter
from collections.abc import Iterable


def require_once(asked: Iterable[str], given: Iterable[str], where: str) -> None:
    """Raises RuntimeError, naming `where`, unless the ids `given` are those `asked` for, each once, in any order."""
    wanted, counts = set(asked), Counter(given)
    wrong = {
        "lost": wanted - counts.keys(),
        "more than once": {image_id for image_id, count in counts.items() if count > 1},
        "never asked for": counts.keys() - wanted,
    }
    found = [f"{len(ids)} {what}, such as {min(ids)!r}" for what, ids in wrong.items() if ids]
    if found:
        raise RuntimeError(f"the rows of {where} are not the {len(wanted)} asked for: {'; '.join(found)}")
