"""Words of software as they are spelled in it: keywords, types, tags, tools, formats. They pass where words
pass.

A spelling counts exactly: `int` and `JavaScript`, not `Int` and `Javascript`. Spellings that are also names
of people (Ruby, Julia, Swift) are left out.
Threat model: public words, the same for every text. Does not protect: that a text is about software shows.
Source: own; keywords and names as the languages' references write them.
"""

from __future__ import annotations

_CODE = """
    def elif class lambda yield async await
    int str float bool dict tuple list set None True False null true false undefined nan inf var let const
    func fn struct enum impl pub mut trait typedef sizeof malloc printf println stdin stdout stderr
    void char double unsigned boolean byte String Integer Boolean Object Array Map Set
    namespace typeof
    instanceof args kwargs argv argc init repr len env cwd foreach endif elsif ifdef ifndef
    div span img href src ul ol li tr td th thead tbody nav svg css html px rgb rgba hsl flexbox
    onclick onload innerHTML className stylesheet favicon viewport iframe canvas tooltip dropdown navbar
    varchar datetime timestamp uuid
    json yaml toml csv tsv xml regex utf ascii unicode http https localhost api apis url
    urls callback callbacks middleware backend frontend runtime codebase changelog readme repo repos
    git commit commits rebase checkout sudo chmod chown mkdir grep awk sed ls cd pwd ssh scp curl wget npm pip
    docker dockerfile kubectl kubernetes nginx redis postgres postgresql mysql sqlite mongodb kafka linux bash
    numpy pandas pytest unittest matplotlib scipy sklearn pytorch tensorflow django flask fastapi pydantic
    asyncio dataclass dataclasses docstring docstrings stacktrace traceback stderr linter linters tokenizer
    dataset datasets dataframe dataframes hyperparameter hyperparameters overfitting backprop softmax relu
    ok todo fixme wip lgtm
"""
_NAMES = """
    JavaScript TypeScript Python Java Kotlin Golang Haskell Erlang Fortran COBOL MATLAB SQL NoSQL GraphQL
    HTML CSS SCSS SVG JSON YAML TOML XML CSV TSV PDF PNG JPEG LaTeX TeX Markdown README Makefile Dockerfile
    GitHub GitLab Git Docker Kubernetes Linux Ubuntu Debian Windows macOS iOS Android PostgreSQL MySQL SQLite
    MongoDB Redis Kafka Elasticsearch NumPy SciPy pandas PyTorch TensorFlow Keras JAX CUDA OpenCV
    Django FastAPI NodeJS ReactJS VueJS AngularJS jQuery
    Tailwind Webpack Vite ESLint PyTest JUnit Selenium Playwright REST RESTful gRPC OAuth JWT API APIs URL
    URLs UUID UTF ASCII Unicode HTTP HTTPS TCP UDP IP DNS SSH TLS SSL VPN CPU GPU RAM SSD OS CLI GUI IDE SDK
    Excel PowerPoint Outlook VBA VLOOKUP XLOOKUP WordPress Jupyter VSCode Vim Emacs IntelliJ
    PowerShell Terraform Ansible Jenkins YouTube WiFi e-mail TODO FIXME OK
    LLM LLMs GPT BERT LoRA RNN CNN LSTM SVM PCA RAG NLP
"""
TECHNICAL = frozenset((_CODE + _NAMES).split())
