"""Not written yet: plans and components of this kind of layer join the room's here."""

from __future__ import annotations

from transom.obfuscation.task import Planner, Transform

PLANS: dict[str, Planner] = {}
COMPONENTS: dict[str, Transform] = {}
