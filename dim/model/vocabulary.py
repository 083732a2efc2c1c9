"""Words and figures that flags share with what they set. (Help needs them, and nothing that takes long to import.)"""

from typing import Literal

Resize = Literal["squash", "long-side"]
POWER = 0.25  # of the eigenvalues of a PCA, where nothing else is asked
