"""The gateway's annotator and the engine's watch for triggers in prompts: off without `--backdoor-detector`.

A prompt is judged as the model read it: in a mode with words, sanitised. The modes that hide ids are refused,
since an engine cannot tell words in them, and so are engines that tell nothing of their states.
Threat model: that of `transom.trust.backdoor.live`. Does not protect: a flag is advice, and nothing is
withheld. Source: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.serving.annotate import Annotator, Asked, Heard, Note

if TYPE_CHECKING:
    from transom.serving.tokenizer import ChatTokenizer
    from transom.trust.backdoor.detector import Detector
    from transom.trust.backdoor.live import Judged

_SHOWN = 40  # characters of a word
_MODES = ("plain", "words")


@dataclass(frozen=True)
class BackdoorOptions:
    """Whether prompts are judged."""

    PANEL: ClassVar[str] = "Backdoors"
    backdoor_detector: Annotated[
        Path | None, "Flag prompts that look as if they carried a trigger: a file of transom backdoor fit."
    ] = None
    backdoor_rate: Annotated[
        float, Setting("Share of innocent prompts that may be flagged.", above=0, most=0.5)
    ] = 0.05

    def check(self, mode: str) -> None:
        """Raises MisconfiguredError for a mode in which prompts cannot be judged."""
        if self.backdoor_detector is not None and mode not in _MODES:
            raise MisconfiguredError(
                f"--backdoor-detector: in mode {mode} the engine gets no plain ids and cannot tell the "
                "prompt's words; use mode plain or words, or leave it out"
            )

    def annotators(self, kind: str, tokenizer: ChatTokenizer | None) -> tuple[Annotator, ...]:
        """None without a detector. Raises MisconfiguredError for an engine that tells of no states, and for a
        file or a rate that cannot be used."""
        if self.backdoor_detector is None:
            return ()
        if kind != "transom" or tokenizer is None:
            raise MisconfiguredError(
                f"--backdoor-detector: an engine of kind {kind} tells nothing of its states; use transom "
                "engine MODEL --backdoor-detector FILE, or leave it out"
            )
        from transom.trust.backdoor.detector import read_detector

        detector = read_detector(self.backdoor_detector)
        detector.check_rate(self.backdoor_rate)
        return (BackdoorAnnotator(detector, self.backdoor_rate, tokenizer.token_text),)


@dataclass(eq=False)
class BackdoorAnnotator:
    """Says of each answer whether its prompt is flagged, once its first token comes."""

    detector: Detector
    rate: float
    token_text: Callable[[int], str]
    name: str = "backdoor"
    features: bool = True
    required: bool = False

    def watch(self, asked: Asked) -> _Watcher:
        """See `Annotator`."""
        return _Watcher(self, asked)


class _Watcher:
    def __init__(self, owner: BackdoorAnnotator, asked: Asked) -> None:
        self._owner, self._asked = owner, asked
        self._judged: Judged | None = None

    def hear(self, heard: Heard) -> Mapping[str, Any] | None:
        from transom.trust.backdoor.live import judge

        if self._judged is not None or heard.features_TF is None or not len(heard.features_TF):
            return None
        lengths = {len(ids) for ids in self._asked.prompts}
        self._judged = judge(self._owner.detector, heard.features_TF[0], self._owner.rate, lengths)
        return self._field(self._judged)

    def close(self) -> Note:
        from transom.trust.backdoor.live import Judged

        judged = self._judged or Judged(reason="the engine told nothing of a first token")
        said = "not scored"
        if judged.p_value is not None:
            said = f"{'flagged' if judged.flagged else 'clear'} p={judged.p_value:.2g}"
        return Note(self._field(judged), said)

    def _field(self, judged: Judged) -> Mapping[str, Any]:
        if judged.p_value is None:
            return {"flagged": None, "reason": judged.reason}
        return {
            "flagged": judged.flagged,
            "p_value": judged.p_value,
            "statistic": judged.statistic,
            "rate": self._owner.rate,
            "word": self._word(judged),
        }

    def _word(self, judged: Judged) -> str | None:
        """That most heads look at; None where there are several prompts."""
        if len(self._asked.prompts) != 1 or judged.place is None or judged.length is None:
            return None
        ids = self._asked.prompts[0][judged.place :]
        return "".join(map(self._owner.token_text, ids[: judged.length])).strip()[:_SHOWN]
