"""The lists of the shipped policy: what must and must not be on each, and what fields take of a text."""

from __future__ import annotations

import pytest

from transom.privacy.closed import is_closed
from transom.privacy.kinds import FIELDS
from transom.privacy.policy import LISTED, Policy, load_policy
from transom.privacy.text import is_plain_word

ON = {
    "person": """johnson marguerite fatima mohammed wei nguyen patel kowalski yusuf anna peter john
        jane nelson garcia kim sarah emma olivia liam aisha priya dmitri sven ingrid
        siobhan giovanni hernandez obrien mozart""",
    "place": """london paris tokyo nairobi manchester leeds bristol glasgow chicago seattle texas
        california france germany kenya york angeles francisco lyon zurich lagos
        karachi brazil washington nottingham sheffield norwich toulouse hamburg
        warsaw""",
    "organisation": """microsoft ibm nato unesco bbc cnn toyota facebook walmart fbi opec cia nasa hsbc
        barclays pfizer boeing lockheed samsung sony honda nissan renault fifa uefa
        hezbollah youtube wikipedia ebay paypal""",
    "namesake": """rose mark hope young bill grace summer baker brown hill king price hunt wood stone
        bath nice mobile orange turkey china rice page grant miller google amazon
        shell frank phoenix""",
    "health": """cancer cancers diagnosed diabetes surgery chemotherapy hospital doctor asthma
        depression hiv tumour headache pain injury medicine treatment psychiatrist
        wheelchair dementia epilepsy suicidal alcoholic insulin prozac covid
        vaccinated disabled infertility anorexia""",
    "finance": """mortgage debts bankrupt salary pension overdraft loan unemployed tax insolvent
        arrears foreclosure wages creditor borrowed owed dividend inheritance
        repossession payslip alimony taxes redundancy evicted homeless penniless
        gambling income welfare bailiffs""",
    "religion": """muslim church catholic pray mosque rabbi easter christian synagogue buddhist hindu
        sikh atheist baptised priest koran bible ramadan kosher halal hijab imam
        vicar quaker mormon prayers worship nun protestants jews""",
    "politics": """democrat republican voted election socialist union communist liberal conservative
        referendum brexit fascist marxist activist protester senator politician
        ballot partisan feminist separatist nationalism extremist voters councillor
        libertarian populist anarchist ideology unionist""",
    "origin": """german french immigrant refugee asian turkish germans americans visa british
        nationality deported asylum mexican kurdish romany hispanic ethnic
        indigenous nigerian pakistani syrian migrant foreigner arabic cantonese
        welsh jamaican citizenship expatriate""",
    "sexuality": """gay lesbian sex sexual condom bisexual transgender homosexuality contraceptive
        erection adultery pornography prostitute virginity celibate fetish lover
        nude infidelity syphilis herpes queer heterosexual impotence libido orgasm
        masturbation lgbt sexually gays""",
    "crime": """arrested prison murder theft convicted guilty felony burglary fraud robbery bail
        parole probation inmate rape assault smuggling kidnapped arson perjury
        embezzlement blackmail lawsuit thieves stolen shoplifting indicted
        manslaughter jail homicide""",
    "family": """mother divorced husband daughter pregnant married nephew grandson widow orphan
        stepmother fiancee adoption sister brothers aunt cousin wedding wife sons
        uncle granddaughter siblings custody pregnancy twins spouse grandmother
        widower""",
    "instruction": """write summarise summarize list translate compare explain headline json table bullet
        paragraph sentence email essay poem step code function question answer
        classify rewrite proofread tone style formal story recipe letter""",
    "part": """aortic bacterial calcium dietary hardship grassroots cheque collateral umbilical
        plasma whooping vouchers compression""",
    "ordinary": """else cannot everybody others ought amid amongst whereas versus whenever oh ok hey""",
    "dictionary": """unsustainable tardy gullible smartphone wifi cardamom teapot
        headmistress sheepishly unconsciously tailors phonograph ordinal carburetor
        misfit shortcoming waffles sunroof washers superlative glean braids
        clarinetist sorrowful bumblebees login hilt bumblebee sandal""",
}  # fmt: skip
# In no field: everyday words that are also a sense of one.
HARMLESS = """cold cell patient house home pay price bank account rent cost service mass party
        race native black white kids child children partner family court police
        judge trial charge shot tablet rich benefit default refund operation vision
        doctorate labour government president sales profit live resident aids kiss
        relationship execute password runner"""
# On no list at all: days, months and pass words are read otherwise, the others are ordinary words.
NOWHERE = """monday tuesday saturday christmas january may will the of and garden dinner weather
        meeting school office holiday train music water dog cat game film friend
        internet website chair"""

# A letter of own making about nothing sensitive.
LETTER = """
    Thank you for your letter about the garden. We walked along the river on Saturday and the weather
    was bright, so we sat outside for most of the afternoon and talked about the plans for the new
    kitchen. The builder wants to begin in the second week of the month, and he thinks the floor
    will take three days. I have chosen the tiles, but the colour of the walls is still open;
    perhaps you could look at the samples when you come. The train leaves at ten and arrives before
    lunch, and somebody will wait for you at the station with the car. If it rains we can visit the
    museum, where there is a small exhibition of old maps, and later cook something simple at home.
    The dog has learned to open the door by himself, which is funny but not very practical. Please
    bring your boots and a warm coat, since the path behind the house is muddy at this time of the
    year. The neighbours have lent us their long ladder, so the apples can be picked before the
    first frost. Work has been busy: we moved to a larger office, everybody complained about the
    noise, and the printer broke twice in one morning. I read the book that you recommended and
    liked the beginning better than the end.
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


def test_every_listed_word_is_one_lower_case_word_that_neither_passes_nor_is_closed(policy: Policy) -> None:
    assert set(policy.listed.values()) == set(LISTED) == set(ON)
    assert list(policy.listed) == sorted(policy.listed)
    assert all(is_plain_word(word) and not is_closed(word) for word in policy.listed)
    assert not policy.listed.keys() & policy.pass_words


def test_words_that_may_be_drawn_are_of_a_field_an_instruction_or_a_namesake(policy: Policy) -> None:
    kinds = {policy.listed[word] for word in policy.words if word in policy.listed}
    assert kinds == {"namesake", "instruction", "part", *FIELDS}


@pytest.mark.parametrize("kind", LISTED)
def test_what_must_be_on_a_list_is_there(policy: Policy, kind: str) -> None:
    words = ON[kind].split()
    assert len(set(words)) >= (29 if kind not in ("part", "ordinary") else 10)
    wrong = {word: policy.listed.get(word) for word in words if policy.listed.get(word) != kind}
    assert not wrong


def test_everyday_words_are_in_no_field(policy: Policy) -> None:
    assert not {word: policy.listed[word] for word in HARMLESS.split() if policy.listed.get(word) in FIELDS}


def test_ordinary_words_days_and_months_are_on_no_list(policy: Policy) -> None:
    assert not {word: policy.listed[word] for word in NOWHERE.split() if word in policy.listed}


def test_forms_of_a_word_are_of_its_field(policy: Policy) -> None:
    for forms in (
        "diagnose diagnosed diagnosing", "cancer cancers", "divorce divorced divorces", "german germans",
        "hospitalised hospitalized", "tumour tumor tumors", "baptised baptized",
    ):  # fmt: skip
        assert len({policy.listed.get(form) for form in forms.split()}) == 1, forms


def test_fields_take_little_of_running_text(policy: Policy) -> None:
    """By public frequency, of words that may be drawn, and in a letter about nothing sensitive."""
    share = dict.fromkeys(FIELDS, 0.0)
    for word, prior in zip(policy.words, policy.prior_V.tolist(), strict=True):
        if (kind := policy.listed.get(word, "")) in share:
            share[kind] += prior
    assert all(0.0005 < part < 0.01 for part in share.values()), share
    assert sum(share.values()) < 0.05
    words = [word.strip(".,;:").lower() for word in LETTER.split()]
    assert [word for word in words if policy.listed.get(word) in FIELDS] == []
    known = policy.listed.keys() | set(policy.words) | policy.pass_words
    assert [word for word in words if word not in known and not is_closed(word)] == ["saturday"]
