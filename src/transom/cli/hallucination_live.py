"""The gateway's annotator for made-up answers: off without `--risk-detector`.

An answer is judged as the model gave it, and its sentences as they are delivered: in a mode with words the
states are of the sanitised conversation. The modes that hide ids are refused, since states of a changed model
are others, and so are engines that tell nothing of their states. A vLLM tells of them by files, and answers
in pieces then.
Threat model: that of `transom.trust.hallucination`. Does not protect: what was streamed before an answer was
withheld or stopped has been read. Source: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Unpack

from transom.checkpoint.load import Dtype
from transom.config import Setting, to_plain
from transom.errors import EngineGarbageError, MisconfiguredError, RefusedError
from transom.serving.annotate import Annotator, Asked, Heard, Note

if TYPE_CHECKING:
    from transom.serving.engines.base import Engine
    from transom.serving.engines.http import Common
    from transom.serving.tokenizer import ChatTokenizer
    from transom.trust.hallucination.detector import Detector
    from transom.trust.hallucination.live import Sentence

Policy = Literal["mark", "withhold", "stop"]
_MODES = ("plain", "words")


@dataclass(frozen=True)
class RiskOptions:
    """Whether answers are judged."""

    PANEL: ClassVar[str] = "Made-up answers"
    risk_detector: Annotated[
        Path | None, "Say how likely answers are made up: a file of transom hallucination fit."
    ] = None
    risk_policy: Annotated[Policy, "Above the line: mark, withhold the answer, or stop at the sentence."] = (
        "mark"
    )
    risk_tokens: Annotated[bool, Setting("Tell the risk after each piece of a stream too.")] = False
    risk_model: Annotated[
        str | None, "Of kind vllm: what it serves, folder or name, as its states are made sense of here."
    ] = None
    risk_dtype: Annotated[Dtype, "Of kind vllm: what it and the detector's model compute in."] = "float32"
    risk_states: Annotated[Path | None, "Of kind vllm: the folder to which it writes states."] = None

    def check(self, mode: str) -> None:
        """Raises MisconfiguredError for a mode in which answers cannot be judged."""
        if self.risk_detector is None:
            if self != RiskOptions():
                raise MisconfiguredError("options that begin with --risk need --risk-detector")
        elif mode not in _MODES:
            raise MisconfiguredError(
                f"--risk-detector: in mode {mode} the engine's states are not those that the "
                "detector was fitted on; use mode plain or words, or leave it out"
            )

    def client(self, url: str, **common: Unpack[Common]) -> Engine | None:
        """Of a vLLM that hands out states, None without a detector. Raises MisconfiguredError, and
        NotYetError for a model whose head is not known."""
        if self.risk_detector is None:
            return None
        if self.risk_model is None or self.risk_states is None:
            raise MisconfiguredError(
                "--risk-detector: a vLLM's states need --risk-model MODEL and --risk-states FOLDER, to which "
                "it writes them"
            )
        from transom.checkpoint.load import load
        from transom.serving.engines.vllm_states import VllmStatesEngine
        from transom.trust.hallucination.detector import read_detector
        from transom.trust.hallucination.live import RiskTeller

        detector = read_detector(self.risk_detector)
        teller = RiskTeller(load(self.risk_model, dtype=self.risk_dtype), detector)
        return VllmStatesEngine(url, teller, self.risk_states, **common)

    def annotators(self, kind: str, tokenizer: ChatTokenizer | None) -> tuple[Annotator, ...]:
        """None without a detector. Raises MisconfiguredError for an engine that tells of no states, for a
        file that cannot be used, and for a detector of other prompts than chats."""
        if self.risk_detector is None:
            return ()
        if kind not in ("transom", "vllm") or tokenizer is None:
            raise MisconfiguredError(
                f"--risk-detector: an engine of kind {kind} tells nothing of its states; use "
                "transom engine MODEL --risk-detector FILE, or leave it out"
            )
        if kind == "transom" and (self.risk_model or self.risk_states):
            raise MisconfiguredError(
                "--risk-model and --risk-states are for a vLLM; transom engine tells of its states itself"
            )
        from transom.trust.hallucination.detector import read_detector

        detector = read_detector(self.risk_detector)
        whole = tokenizer.encode_chat([("user", "TEXT")]).text if tokenizer.has_template else "TEXT"
        if (detector.about.before, "TEXT", detector.about.after) != whole.partition("TEXT"):
            raise MisconfiguredError(
                f"{self.risk_detector} was fitted on other prompts than this model's chats; fit it "
                "with --chat"
            )
        silent, token_text = tokenizer.eos_ids, tokenizer.token_text
        return (
            RiskAnnotator(
                detector, lambda one: "" if one in silent else token_text(one),
                self.risk_policy, self.risk_tokens,
            ),
        )  # fmt: skip


@dataclass(eq=False)
class RiskAnnotator:
    """Says how likely an answer is made up, of each sentence when it is over and of all of it in the end. One
    that withholds or stops must judge each answer."""

    detector: Detector
    text_of: Callable[[int], str]  # of a token, as the model wrote it
    policy: Policy = "mark"
    with_tokens: bool = False
    name: str = "hallucination"
    features: bool = True
    required: bool = field(init=False)

    def __post_init__(self) -> None:
        self.required = self.policy != "mark"

    def watch(self, _asked: Asked) -> _Watcher:
        """See `Annotator`."""
        return _Watcher(self)


class _Watcher:
    def __init__(self, owner: RiskAnnotator) -> None:
        from transom.trust.hallucination.live import Listener

        self._owner, self._listener = owner, Listener(owner.detector)
        self._sentences: list[Sentence] = []
        self._held: list[Sentence] = []
        self._written, self._has_words = "", False

    def hear(self, heard: Heard) -> Mapping[str, Any] | None:
        import numpy as np

        from transom.trust.hallucination.states import placeholders_alone

        rows_TF = heard.features_TF if heard.features_TF is not None else np.empty((0, 0))
        texts = [self._owner.text_of(one) for one in heard.ids]
        self._written += "" if self._has_words else "".join(texts)
        self._held += self._listener.hear(
            rows_TF, heard.text, list(map(len, texts)), last=heard.finish_reason is not None
        )
        if not self._has_words:  # nothing is said of placeholders alone, and what follows tells
            if placeholders_alone(self._written):
                return None
            self._has_words = bool(self._held)  # a whole sentence: from here on the text only grows
        ended, self._held = self._held, []
        self._sentences += ended
        if self._owner.policy == "stop" and any(one.flagged for one in ended):
            raise RefusedError("a sentence of the answer is likely made up; it was stopped", code="made_up")
        said: dict[str, Any] = {"sentences": list(map(to_plain, ended))} if ended else {}
        if self._owner.with_tokens and self._listener.count:
            said["risk"] = self._owner.detector.risk(self._listener.series()).risk
        return said or None

    def close(self) -> Note:
        from transom.trust.hallucination.score import why
        from transom.trust.hallucination.states import placeholders_alone

        empty = not self._listener.text.strip()
        if empty or (not self._has_words and placeholders_alone(self._written)):
            reason = "the answer is empty" if empty else "the answer is placeholders alone"
            return Note({"risk": None, "flagged": None, "reason": reason}, "not scored")
        if not self._listener.count:  # marked as a failure or, where each answer must be judged, one
            raise EngineGarbageError("the engine told nothing of its states; give it the detector too")
        risk = self._owner.detector.risk(self._listener.series())
        if risk.flagged and self._owner.policy == "withhold":
            raise RefusedError("the answer is likely made up; it is withheld", code="made_up")
        said = {
            "risk": risk.risk,
            "flagged": risk.flagged,
            "line": self._owner.detector.about.line,
            "why": list(why(risk)),
            "sentences": list(map(to_plain, self._sentences)),
        }
        return Note(said, f"{'flagged' if risk.flagged else 'clear'} risk={risk.risk:.2f}")
