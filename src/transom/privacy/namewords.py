"""The closed words by which names are found, ended and typed; the rules that use them are in `names`.

Threat model: public words, the same for every text. A rule reads such a word only where it passes under the
policy. Does not protect anything by itself; English first, with the street and company words of some
neighbouring languages.
Source: own; abbreviations of company forms and street types as public registers write them.
"""

from __future__ import annotations

from transom.privacy.closed import MONTHS


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


TITLES = _words(
    "mr mrs ms miss dr prof professor sir lady lord rev reverend father sister messrs mme herr frau "
    "señor señora monsieur madame signor signora capt captain lt sgt sergeant maj major cpl gov hon "
    "judge justice inspector constable nurse uncle aunt auntie cousin nephew niece"
)
# Titles that pass with their capital and say the gender.
SHOWN_TITLES = _words("mr mrs ms miss dr prof professor sir madam messrs rev reverend hon capt sgt lt")
GREETINGS = _words("dear hi hello hey thanks thx morning evening bye")
# Closing formulas: a short line with one of them ends a letter, names follow.
CLOSINGS = _words(
    "regards sincerely faithfully truly respectfully wishes thanks love best cheers yours cordially "
    "respects greetings hugs warmly fondly"
)
# What people do, after a name that opens a sentence.
DOES = _words(
    "said says told tells asked asks called calls wrote writes replied answered thinks thought knows "
    "knew wants wanted lives lived works worked has had is was are were isn wasn will would can could "
    "does did came comes went goes met meets left leaves found finds moved owes owed paid pays promised "
    "agreed agrees signed sent sends refuses refused gets got keeps kept owns owned runs ran takes "
    "took gives gave brings brought makes made sees saw hears heard feels felt needs needed likes liked "
    "hates hated hit hits stole steals fell drinks drank drives drove died dies passed married hurt won "
    "lost teaches taught sold sells bought buys lent borrowed refers denies denied claims claimed lied "
    "lies shouted laughed smiled cried spoke speaks sleeps slept stayed stays returned returns opened "
    "assigned"
)
# What only people do; also after a name in lower case.
SPEAKS = _words(
    "said says told asked wrote replied answered thinks owes promised laughed smiled shouted spoke refused "
    "refuses denied denies lied taught teaches married"
)
# Namesakes that stand without an article where they are no name: after `by`, before `is`.
MASS = _words(
    "hope faith love grace joy summer spring autumn winter dawn day night bath reading gold silver iron "
    "steel glass wood stone coal cotton sugar salt pepper rice bread wine beer ginger coffee tea rain "
    "snow ice cash hand law post bill price power peace justice charity mercy patience prudence "
    "constance trust care heart luck fortune parking work art music sport school home church court town "
    "street road house land sea water fire light heat cold long best close nice good strong young old "
    "new white black brown green gray grey red rich sharp small little short wise noble savage early "
    "late major general english french german welsh training ground staff way line order case field "
    "force lead means chance change"
)
# Words that are names of people, places and companies too, beside those that a policy lists as such; a
# policy may list them for another reason, as a word of a sensitive field or of instructions.
NAMESAKES = (
    _words(
        "abbott angel april art autumn axel barry basil berry bill bird bishop blossom bob boots brandy "
        "brook buck bunny carol cash chance charity chase chastity cherry chip christian church clay cliff "
        "colt coral crystal curt daisy dale dawn day dean destiny dick don drew duke earl eve ever faith "
        "faye fern finn fleur flora forest foster frank gale gay gene ginger glen gold grace grant guy "
        "hazel heath heather holly honor hope hunter iris israel ivory ivy jack jasmine jay jewel joy june "
        "juniper kitty lane laurel lee levy lily lion love luck mark marsh martin mason max may melody "
        "mercy merit miles misty moon nick noble norm olive opal page pansy parker pat patience patty pearl "
        "penny pepper petal peter pierce piper poppy porter prudence quill rain ray reed reef rich river "
        "rob robin rock rod rose rowan ruby rusty sage sandy scarlet scout skip sky sonny spike spring star "
        "stone storm sue summer sunny temperance tiger tom tony troy tracy violet wade ward warren will "
        "willow winter wolf wood woody wren abbey archer bacon baker ball banks barber bark barker barley "
        "barrow bass bath beach bean bell best bishop black blake bloom bond booth bowl bowman box boy "
        "bridge bridges brown bull burn burns bush butcher butler carpenter carter case castle chamber "
        "chambers champion church clark close coffin cole cook cooper cotton cox craft crane cross crow "
        "cruise dark day dyer drake dyke farmer farrow field fields fish fisher fleet flint flood flower "
        "flowers foot ford fowler fox freeman frost fry fuller gale gallows gardener gates glass glover "
        "goldsmith good grave graves gray green grey hall hammer hand harding hardy harper hart hawk hay "
        "head hill hook horn house hull hunt king knight lake lamb law lawn leaf little long lord low marsh "
        "mead merchant mill miller mills moody moor moore moss mountain neighbour nice nightingale nail "
        "paige pain palmer park parson parsons partridge peacock pike pine pitt plant plum pole pond pool "
        "pope post potter pound power price priest prince purse quick ramsey read reader reed rice ring "
        "rivers roach roads root rush sand sands savage sawyer sergeant sharp shepherd short silver singer "
        "skinner slater small smart smith snow sparrow spears spencer steel steele street strong sugar swan "
        "sweet swift taylor teller thorn thorne tower towers trout tucker turner tyler vane wake walker "
        "wall waters weaver webb weeks west wheat wheeler white wild wise wolfe woods wren young barking "
        "battle bath boulder bolton burnt bury buckle crook crewe deal diss dover down eye flint hove hull "
        "ham hook hope ice lancing limerick lizard looe march mobile mold nice normal orange over phoenix "
        "poole reading rugby rye sale sandwich settle ship sheen skull split ware wells wick wing wool "
        "amazon apple beacon bolt boots bumble caterpillar compass dell direct discord dove ford gap "
        "gateway halo indeed jaguar kestrel lantern larkspur lush mango meridian meta mint monday next "
        "nationwide o2 oracle orbit outlook oyster paramount pinnacle pioneer puma quest santander shell "
        "sky slack sonic spectrum sprint square starling stripe subway sunrise target three tide tiger "
        "twitter uber vanguard virgin visa vision vertex zenith zoom"
    )
    - MONTHS
)
# Namesakes that, without article or adjective before them, are hardly ever anything but a person.
STRONG = _words(
    "amber angela archie barry becky belle bob bobby bonnie brady bud cary celeste charity chip "
    "christian cliff crystal daisy dale dana dean destiny dexter dick dolly duke dusty dwight ernest "
    "eve faye felicity fern finn flora floyd gale gary gene glen glenn gloria guy hank harry hazel "
    "heath heather holly homer hunter iris ivy jack jade jasmine jasper jay jean jesse jim jimmy jo "
    "joey joy june kay ken kenny kim kirk kitty kyle lance lee leo leslie lily lilly lucky luke lynn "
    "marina marina marsh max maxim melody mercedes merry miles milo misty molly mona monica myrtle "
    "nancy nelly norm norman opal oscar otis pansy patty pearl penny percy pete peter piper poppy raven "
    "ray reed regina rex robin rod roger roman roxy ruby russ russell rusty sally sam sandy savannah "
    "scarlet scott selma sherry sierra skye sonny stella sterling stu tabby tara teddy terry tim "
    "timothy toby todd tom tommy tony tracy trinity troy tyler val vera veronica vic victor viola "
    "violet virginia wally warren wayne wendy willow woody zoe"
)
# Of them that are verbs, too, or too frequent as words: in lower case only after a greeting or who is met.
STRONG_WITH_CAPITAL = STRONG | _words(
    "art autumn basil bill bliss clay cole coral curt dawn don drew faith forest frank ginger grace "
    "grant hope mark mercy nick olive pat pierce prudence rich rob rose sage sky sue summer will wade "
    "skip"
)
MEETS = _words("saw met meet ask asked tell told text texted phone phoned visit visited")
STATIONS = _words("station airport hospital hotel castle beach pier harbour town village")
# Labels before what names nobody.
PLAIN_LABELS = _words(
    "category status priority subject tags tag type language skills steps step task format tone style "
    "topic answer question title severity component labels label role level section product item remark "
    "note"
)
ADDRESSED = _words("you u ya there how can could are r what where when did do")
BY = _words("by from to with of for between against near and")  # before a name in a line of capitals
PARTICLES = _words(
    "de la le les du des del della dei di da do dos das von van der den dem ten ter zu zum el al bin "
    "ibn ben ap af av y st st. mac mc saint"
)
# Ends of the names of organisations. LEGAL: in any case, and short forms with a full stop.
LEGAL = _words(
    "ltd limited inc incorporated plc llp llc gmbh ag kg sa sarl sas srl spa bv nv ab as oy aps co corp "
    "corporation pty"
)
BODIES = _words(
    "bank banks hospital hospitals school schools university college council clinic surgery trust "
    "institute academy insurance logistics motors foods travel travels energy dental union builders "
    "partners group holdings associates services solutions systems airlines airways hotel restaurant "
    "ministry department foundation society association club agency bakery pharmacy library museum "
    "theatre court company sons brothers bros industries international media news press software "
    "technologies telecom electric electronics engineering consulting pharma pharmaceuticals chemicals "
    "steelworks brewery dairy garage repairs lettings estates properties housing homes centre center "
    "nursery parish"
)
# Words that begin one: Bank of Leith, University of X.
HEADS = _words(
    "bank university college bishop church ministry council house city town county duke earl republic "
    "kingdom isle port cape"
)
STREETS = _words(
    "street st road rd avenue ave lane ln place rise row square sq close court ct drive dr gardens hill "
    "terrace way crescent walk park mews yard grove green view acre acres gate gata gatan vej weg allee "
    "platz strasse straße str gasse gracht straat laan plein quay parade boulevard blvd"
)
STREET_ENDS = (
    "gate", "straße", "strasse", "straat", "gracht", "gatan", "gata", "vegen", "vägen", "gasse", "weg",
    "laan", "plein", "platz", "allee",
)  # fmt: skip
STREET_HEADS = _words("boulevard calle via rue avenida rua ulica ul plaza piazza place paseo unter")
PARTS = STREETS | BODIES | {"castle", "cross", "bridge", "island", "bay", "point", "head", "end"}
RELATIONS = _words(
    "brother sister son daughter wife husband mother father mum dad friend neighbour neighbor boss "
    "colleague partner boyfriend girlfriend fiancé fiancée grandson granddaughter teacher doctor lawyer"
)
PLACED = _words("in near at")  # before a place
PERSON_LABELS = _words(
    "from to cc bcc name patient attn client tenant passenger witness customer contact author signed "
    "secretary present applicant chair apologies by bill client pupil student employee claimant "
    "defendant traveller guest member owner holder candidate doctor name"
)

_DAYS = "mon tue tues wed thu thur thurs fri sat sun monday tuesday wednesday thursday friday saturday sunday"
_LETTERS = (
    "re fw fwd cc bcc ps subject sent date page note notes annex ref tel fax mobile phone e-mail email "
    "attn encl enc invoice bill receipt order notice complaint reminder agenda minutes agreement "
    "contract testament will curriculum vitae cv resume profile referral summary introduction "
    "conclusion skills education experience references reference hobbies contents abstract background "
    "method methods results discussion appendix chapter section figure table step steps example title "
    "author status category tags comment priority description question answer task input output context "
    "instruction instructions person entry state value total amount quantity price item items name "
    "address city country type kind id version page who what when where why how yes no ok okay hello hi "
    "hey dear thanks thank please sorry regards sincerely faithfully truly respectfully wishes love "
    "best cheers yours warm kind many with all sir madam honour honor colleague colleagues sirs team "
    "everyone everybody customer service dad mum mom mummy daddy grandma grandpa granny god lord heaven "
    "christmas easter bon voyage internet web confirmation confirmed booking ticket report request "
    "application statement account policy case claim letter message mail copy draft urgent confidential "
    "private personal information attachment enclosed"
)
ACRONYMS = _words(
    "api asap atm bbc cd cet csv css cv diy dna dob doc dvd eta eu faq fyi gb gdp gmt gp gps hr html "
    "http https iban id imho ip iq isbn it json jpeg jpg kpi lcd led llm mb mba ml mp mri nb nlp pc pdf "
    "phd pin pm png po pr pto qr ram rip rna rsvp sim sms sos sql ssl suv tba tbc tbd tv ui uk un url "
    "us usa usb utc ux vat vip vpn wc wifi www xml yaml zip ai ok am bc ad aka etc ceo cfo cto pa ac dc "
    "ok okay lol omg btw"
)
_PROGRAMS = (
    "english word excel powerpoint outlook windows linux python java javascript markdown latex unicode"
)
# Words whose capital is custom and says nothing: they stay what they are, unless a name stands beside them.
CUSTOMARY = ACRONYMS | _words(f"{_DAYS} {_LETTERS} {_PROGRAMS}") | SHOWN_TITLES | frozenset(
    f"{day}s" for day in _words(_DAYS)
)  # fmt: skip
