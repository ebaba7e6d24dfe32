"""What a protected text is still good for: three kinds of task, each a score in [0, 1] per item.

`frontier` sets the utility of tasks beside what an attack recovers, for words and for words+obfuscation.
Importing this room loads no model library.
"""

from transom.audit.utility.encoder import sentence_features
from transom.audit.utility.files import read_task
from transom.audit.utility.frontier import Measured, Setting, frontier, measure
from transom.audit.utility.model import Answerer, load_answerer, obfuscated
from transom.audit.utility.protect import Protected, unprotected, words
from transom.audit.utility.tasks import Answers, Classify, Question, Summarise, Task, rouge_l

__all__ = [
    "Answerer",
    "Answers",
    "Classify",
    "Measured",
    "Protected",
    "Question",
    "Setting",
    "Summarise",
    "Task",
    "frontier",
    "load_answerer",
    "measure",
    "obfuscated",
    "read_task",
    "rouge_l",
    "sentence_features",
    "unprotected",
    "words",
]
