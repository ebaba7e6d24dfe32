"""Hand-made seeds of the public word lists: concepts of the sensitive fields, words added, words left out.

`fields` takes from WordNet what lies below `ROOTS`, adds `ADDED` with its inflections, and leaves out
`HARMLESS`: words whose everyday sense says nothing about a person although WordNet puts another sense first.
`INSTRUCTIONS` are the words in which people tell a language model what to do.
Threat model: none of its own; all of this is public. Does not protect: a list by hand has gaps.
Source: written for this project, `INSTRUCTIONS` with a look at the words that recur over the task prompts of
lm-evaluation-harness 0.4.13 (MIT) and airoboros 2.2.2 (Apache 2.0): half of them are there. The fields
follow articles 9 and 10 of Regulation (EU) 2016/679, with money and family beside them.
"""

from __future__ import annotations


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# A word that fits several fields goes to the first of them.
FIELDS = ("sexuality", "health", "religion", "origin", "crime", "politics", "finance", "family")

ROOTS: dict[str, tuple[str, ...]] = {
    "health": (
        "ill_health.n.1", "symptom.n.1", "injury.n.1", "disorder.n.1", "disability.n.1", "addiction.n.1",
        "mental_illness.n.1", "medicine.n.1", "medicine.n.2", "drug_of_abuse.n.1", "medical_procedure.n.1",
        "medical_building.n.1", "medical_specialist.n.1", "doctor.n.1", "therapy.n.1", "surgeon.n.1",
        "addict.n.1", "sick_person.n.1", "abortion.n.1", "tumor.n.1", "wheelchair.n.1", "crutch.n.1",
        "psychiatry.n.1", "handicapped_person.n.1", "hypochondriac.n.1", "midwifery.n.1", "vaccine.n.1",
        "prosthesis.n.1", "diagnosis.n.1", "pathogen.n.1", "psychotic.n.1", "neurotic.n.1",
    ),
    "finance": (
        "debt.n.1", "debt.n.2", "loan.n.1", "income.n.1", "regular_payment.n.1", "tax.n.1", "insolvency.n.1",
        "poverty.n.1", "debtor.n.1", "creditor.n.1", "bankrupt.n.1", "beggar.n.1",
        "poor_person.n.1", "inheritance.n.2", "foreclosure.n.1", "rich_person.n.1", "overdraft.n.1",
        "alimony.n.1", "indebtedness.n.1",
    ),
    "religion": (
        "religion.n.1", "religion.n.2", "religious_person.n.1", "clergyman.n.1", "spiritual_leader.n.1",
        "place_of_worship.n.1", "religious_ceremony.n.1", "sacred_text.n.1", "theology.n.1", "prayer.n.1",
        "prayer.n.2", "religious_residence.n.1", "monastic.n.1", "religious_order.n.1", "atheist.n.1",
        "religious_movement.n.1", "theologian.n.1", "worship.n.1", "religious_holiday.n.1", "hymn.n.1",
        "pilgrim.n.2", "heretic.n.1", "convert.n.1",
    ),
    "politics": (
        "political_orientation.n.1", "politician.n.1", "socialist.n.1", "radical.n.3", "party.n.1",
        "leftist.n.1", "rightist.n.1", "liberal.n.1", "election.n.1", "vote.n.1", "union.n.1", "voter.n.1",
        "activist.n.1", "nationalist.n.1", "racist.n.1", "referendum.n.1",
    ),
    "origin": (
        "inhabitant.n.1", "ethnic_group.n.1", "natural_language.n.1", "immigrant.n.1",
        "refugee.n.1", "foreigner.n.1", "race.n.3", "mulatto.n.1", "native.n.1",
        "person_of_color.n.1", "migrant.n.1",
    ),
    "sexuality": (
        "homosexual.n.1", "sexual_activity.n.1", "heterosexual.n.1",
        "bisexual.n.1", "prostitute.n.1", "contraceptive.n.1", "pervert.n.1", "transsexual.n.1",
        "homosexuality.n.1", "pornography.n.1", "transvestite.n.1", "venereal_disease.n.1",
    ),
    "crime": (
        "crime.n.1", "criminal.n.1", "imprisonment.n.1", "imprisonment.n.2", "prisoner.n.1", "thief.n.1",
        "murderer.n.1", "correctional_institution.n.1", "lawsuit.n.1", "arrest.n.1",
        "conviction.n.2", "probation.n.1", "parole.n.2", "indictment.n.1", "theft.n.1", "drug_dealer.n.1",
        "capital_punishment.n.1", "rapist.n.1", "assault.n.2", "perjurer.n.1", "swindle.n.1",
        "manslaughter.n.1", "bail.n.1", "illegality.n.1",
    ),
    "family": (
        "relative.n.1", "marriage.n.1", "marriage.n.3", "divorce.n.1", "pregnancy.n.1", "spouse.n.1",
        "adoption.n.3", "parent.n.1", "child.n.2", "divorcee.n.1", "widower.n.1", "orphan.n.1",
        "betrothal.n.1", "betrothed.n.1", "birth.n.1", "childlessness.n.1",
        "sibling.n.1",
    ),
}  # fmt: skip

ADDED: dict[str, frozenset[str]] = {
    "health": _words(
        """diagnose diagnosis diagnostic cancer cancerous tumour oncology oncologist chemo chemotherapy
        radiotherapy biopsy metastasis remission relapse hiv antiretroviral hepatitis diabetic
        diabetes insulin asthma asthmatic epilepsy epileptic depression depressive depressed anxiety
        bipolar schizophrenia schizophrenic autism autistic adhd dyslexia dyslexic ptsd psychiatrist
        psychiatric psychologist psychotherapy psychotherapist therapist counsellor suicidal suicide
        overdose addict addicted addiction alcoholic alcoholism rehab detox sober sobriety methadone
        heroin cocaine cannabis marijuana opioid opiate antidepressant sedative antibiotic chemist
        medication dosage dose pill prescription prescribe surgery surgical surgeon surgically
        transplant dialysis hospital hospitalise hospitalize hospitalisation hospitalization clinic
        clinical hospice ambulance ward paramedic physiotherapy physiotherapist midwife paralysis
        paralysed paralyzed disability disabled wheelchair amputee amputation amputated blindness
        deafness stroke seizure migraine arthritis alzheimer parkinson dementia sclerosis leukaemia
        leukemia lymphoma melanoma carcinoma hypertension cholesterol obesity obese anorexia
        anorexic bulimia bulimic eczema psoriasis infertility infertile ivf miscarriage miscarry
        stillborn stillbirth abortion menopause hysterectomy mastectomy chronic incurable inoperable
        malignant benign symptom illness disease syndrome disorder infection infected vaccine
        vaccinate vaccinated vaccination covid coronavirus mri ecg inhaler pacemaker catheter
        bronchitis pneumonia tuberculosis nausea nauseous vomit vomiting dizzy dizziness fainting
        palpitation insomnia inpatient outpatient ill ailment ailing sick sickness unwell treatment
        therapy comatose coma concussion fracture fractured immunodeficiency immunosuppressed
        thyroid colonoscopy incontinence incontinent hallucination hallucinate delusional psychosis
        psychotic manic paranoia paranoid endometriosis ovarian prostate cervical fibromyalgia lupus
        anaemia anemia anaemic anemic allergy allergic ulcer hernia gallstone angina cardiac
        cardiologist cardiology neurologist neurology dermatologist gynaecologist gynecologist
        paediatrician pediatrician urologist radiologist obstetrician antipsychotic metformin
        ibuprofen paracetamol warfarin statin morphine fentanyl steroid valium prozac xanax ritalin
        viagra headache headaches backache toothache pain painful fever flu rash swollen injection
        injected inject nursing medicine doctor symptomatic comorbidity diagnoses radiology tumor
        stoma bowel colostomy stent counselling counseling overweight underweight pharmacy
        pharmacist measles polio malaria cholera crutches painkiller painkillers aspirin cirrhosis
        leprosy dystrophy palsy aneurysm cyst lesion relapsed smoker smokers handicap handicapped
        crippled deaf stammer stutter drug drugs virus viruses tumours aspergers tourette ocd
        anaphylaxis transfusion scoliosis endoscopy ultrasound selfharm citalopram salbutamol
        omeprazole oxycodone tramadol ketamine mdma bedridden housebound terminally sedated
        concussed relapsing contagious quarantine quarantined tetraplegic lactose intolerant coeliac
        alopecia neurodivergent dyspraxia botox caregiver"""
    ),
    "finance": _words(
        """debt indebted debtor creditor loan mortgage remortgage overdraft overdrawn bankrupt bankruptcy
        insolvent insolvency arrears repossess repossession foreclose foreclosure bailiff salary
        salaried wage payslip paycheck payday pension pensioner annuity inheritance inherit
        inherited alimony income earnings dividend redundancy redundant severance unemployed
        unemployment jobless welfare allowance tax taxable taxation deduction savings penniless
        impoverished poverty destitute affluent wealthy wealth millionaire creditworthiness
        creditworthy defaulted lender lend borrow borrowed borrower borrowing owe owed owing
        instalment installment repay repaid repayment gambling gambler bonus stipend scholarship
        subsidy evict eviction evicted homeless homelessness shareholder payable receivable
        liquidation liquidator garnish furlough furloughed breadwinner moneylender pawnshop
        pawnbroker garnishment foodbank foodbanks payroll underpaid payout payouts windfall jackpot
        solvent solvency guarantor lottery almshouse skint stockbroker investor investments"""
    ),
    "religion": _words(
        """christian christianity catholic catholicism protestant protestantism anglican methodist baptist
        lutheran calvinist presbyterian evangelical pentecostal mormon quaker orthodox jehovah
        muslim moslem islam islamic sunni shia shiite sufi jew jewish judaism hindu hinduism
        buddhist buddhism sikh sikhism taoist jain bahai pagan atheist atheism agnostic religion
        religious religiously faith pray prayer praying worship worshipper church mosque synagogue
        temple chapel cathedral parish parishioner vicar priest pastor rabbi imam bishop nun monk
        monastery convent sermon baptism baptise baptize baptised baptized christening communion
        mitzvah ramadan passover easter yom kippur eid diwali hanukkah sabbath kosher halal bible
        quran koran torah gospel scripture hijab burqa niqab yarmulke kippah missionary congregation
        clergy theology theological jesus christ allah muhammad buddha mecca pilgrimage rosary
        zionist talmud hymn ashram gurdwara mandir hajj umrah madrasa shabbat circumcision
        circumcised apostasy apostate scientologist devout pious heathen infidel excommunicated
        ordained ordination seminary seminarian diocese deaconess meditation kaddish secular godless"""
    ),
    "politics": _words(
        """democrat democratic republican tory conservative liberal socialist socialism communist communism
        marxist marxism fascist fascism nazi nazism anarchist anarchism leftist leftwing rightwing
        populist nationalist nationalism separatist royalist monarchist libertarian feminist
        feminism environmentalist vote voted voter voting ballot election elections electoral
        referendum brexit remainer leaver campaigner canvass canvassing politics political
        politically politician senator congressman congresswoman councillor mp constituency
        manifesto partisan ideology union unionist unionised unionized picket activist activism
        protester protest demonstration extremist extremism radical radicalised radicalized
        whistleblower dissident anarchy antifa suffragette suffrage militant insurgent lobbyist
        boycott leftwinger rightwinger neonazi agitator propaganda petition rally rallies canvasser"""
    ),
    "origin": _words(
        """immigrant immigration immigrate emigrate emigrant migrant migration refugee asylum deport deported
        deportation naturalised naturalized naturalisation naturalization citizenship nationality
        ethnicity ethnic racial racially foreigner expatriate expat undocumented visa indigenous
        aboriginal romany roma gypsy caucasian hispanic latino latina mestizo biracial multiracial
        caste tribe tribal asian african european american british scottish welsh irish french
        german italian spanish portuguese dutch russian ukrainian turkish kurdish arab arabic
        iranian iraqi syrian afghan pakistani indian bangladeshi bengali punjabi tamil chinese
        japanese korean vietnamese thai filipino indonesian malaysian nigerian ghanaian kenyan
        somali ethiopian eritrean sudanese egyptian moroccan algerian tunisian jamaican haitian
        cuban mexican colombian brazilian argentine chilean peruvian venezuelan canadian australian
        israeli palestinian lebanese greek romanian bulgarian hungarian czech slovak serbian
        croatian albanian swedish norwegian danish finnish austrian swiss belgian stateless
        interracial dalit brahmin ghetto apartheid motherland homeland ancestry emigration
        naturalise naturalize repatriated repatriation bedouin yazidi rohingya hausa yoruba zulu
        xhosa uyghur birthplace"""
    ),
    "sexuality": _words(
        """gay lesbian homosexual homosexuality bisexual bisexuality heterosexual heterosexuality transgender
        transsexual transvestite queer lgbt lgbtq asexual nonbinary intersex closeted outed
        sexuality sexual sexually sex intercourse orgasm erection erectile impotence impotent libido
        masturbate masturbation porn pornography pornographic prostitute prostitution brothel
        contraception contraceptive condom virgin virginity celibate celibacy fetish erotic naked
        nude nudity infidelity unfaithful adultery adulterous promiscuous lover gonorrhea gonorrhoea
        chlamydia syphilis herpes std sti syphilitic polyamorous polyamory pansexual dildo vibrator
        swinger swingers kinky bdsm stripper striptease crossdresser cisgender dysphoria dominatrix
        sexting aphrodisiac threesome genital genitals penis vagina clitoris semen ejaculation
        homophobic homophobia transphobic escort"""
    ),
    "crime": _words(
        """crime criminal criminally convict convicted conviction arrest arrested prison imprisoned
        imprisonment jail jailed inmate incarcerated incarceration parole paroled probation bail
        felony felon misdemeanour misdemeanor offence offender indict indicted indictment prosecute
        prosecuted prosecution prosecutor defendant plaintiff guilty acquit acquitted acquittal
        theft steal stole stolen thief robbery rob robbed robber burglary burglar burgled fraud
        fraudulent fraudster forgery forge embezzle embezzlement extortion blackmail bribe bribery
        perjury arson arsonist vandalism assault assaulted rape raped rapist molest molested
        molestation murder murdered murderer manslaughter homicide kidnap kidnapped kidnapping stalk
        stalker stalking harass harassed harassment abuse abused abuser abusive trafficking
        trafficker smuggle smuggling smuggler gang gangster mafia terrorist terrorism lawsuit sue
        sued suing litigation subpoena summons detained detainee detention restraining handcuffed
        handcuff shoplifting shoplifter shoplift launder laundering delinquent delinquency
        pickpocket hooligan mugged mugging mugger speeding dui sentenced stabbing stabbed groping
        groped scammed scammer counterfeiting contraband joyriding ransom extort extorted curfew
        reoffend reoffended reoffending perpetrator culprit interrogated interrogation unlawful
        illicit bootlegging looted vandal vandals vandalised vandalized trespass trespassing
        trespasser libel slander defamation"""
    ),
    "family": _words(
        """mother father mom mum mummy dad daddy mommy parent stepmother stepfather stepson stepdaughter
        stepbrother stepsister stepchild brother sister sibling son daughter wife husband spouse
        fiance fiancee bride boyfriend girlfriend aunt uncle niece nephew cousin grandmother
        grandfather grandma grandpa granny grandad grandparent grandchild grandchildren grandson
        granddaughter godfather godmother godson goddaughter widow widower widowed orphan orphaned
        adopted adoption adoptive foster fostered surrogate surrogacy divorce divorced divorcee
        separated marriage married marry marrying remarry remarried wedding pregnant pregnancy
        custody newborn baby babies toddler twin twins triplet birth childbirth breastfeed
        breastfeeding maternity paternity childless unmarried cohabit cohabiting bereaved
        bereavement inlaws stepfamily honeymoon grandparents daughters estranged elope eloped
        stepdad stepmum heir heiress dowry illegitimate adoptee godparents inlaw kinship lineage
        bridesmaid groomsman babysitter nanny childminder"""
    ),
}

# Roots whose whole subtree stays out of the field above it.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "health": ("alcohol.n.1", "tobacco.n.1", "medical_school.n.1", "insect.n.1"),
    "sexuality": ("breeding.n.2", "reproduction.n.3"),
    "origin": ("occupant.n.1",),
}

# Everyday words that WordNet's counts put into a field. Words of `ADDED` are not affected.
HARMLESS = _words(
    """have lent pay rent sales rates profit profits reserve legacy proceeds customs cleanup pave deprive
    deprivation stash hoard payback tonnage markup drifter stocker takings import export live reside
    resident occupant inhabit inhabitant depart settler villager colony colonial alien earth native
    islander coaster yay execution execute executing runner violation illegal password fill spots
    complaint bite slash sting cure mi ms ed irish le wine beer crazy wound hurting spirits vintage
    acoustic sore infectious scratch preventive frenzy congestion downer madness alleviate traumatic
    swelling piles insane invalid diagnostic wasting intern internship complicate aura altering
    frail irrational cough pest choke choking dysfunctional brew unhealthy obsessive scrape rupture
    disable dysfunction injure giddy bleed bends blight limping contagion bootleg numb hardening
    inflame breathless dizzy scar mono daft looney madman spock tic lisp itch creeps shivering
    smarting spasm scratchy hiccup numbness fugue bruise booze cocktail liquor doc gp veterinary
    veterinarian vet flooding aids minister mission laws stations writings devote rector ministerial
    pastoral mystic mystical novice redeem savior saviour patriarch guru yoga cult shrine sect abbey
    vision wasp basilica primate dunk serra mage ascension canonical choral confess prophets
    prophetic turner villa patriot terror veto elect dynamite subvert subversive hawkish elitist
    revolution democracy governor mayor rep hustler propagate pairing screw servicing hug hugging
    kiss kissing cuddle multiplication mating hybridization butch snog snuggle caressing petting
    bawdy meretricious hustle relationship borrowing ma nan para mater pa eldest ancestral
    descendant ancestor kin jr parity infancy quad consort reuben sire dada brotherly sis papa
    antecedent cherub puerile adopter progenitor captive hood punk pirate piracy shanghai snatch
    infringe collaborator capture pow trusty moll lockup pillager traitor crook ripper liquidate
    rustling exile squatter southerner lombard oriental saxon tory barbarian wolverine occupancy
    highlands lowlands holland masters tay mari mick patient wales institutional plagued plague
    plaguing bayer infuriated infuriating infuriate specialising specialises specialise specialize
    depressing depress bloated bloat implanted implant blackwater hakeem hickey wen dope psycho
    inhaled inhale inhaling throes welt diagnostics sterilization salve twitch crick facelift versed
    stuttering doctored pained lazar adhesion hives balsamic chafed shiner strictures throbbing
    hyperactive frailty pathology gall treating treat lech homo pox deviant blessing blessed bless
    calif rite rites swami pagoda priory parson parsons begum hermit puritan shakers obi chela
    curate minster salah haji padre padres officiate officiating officiated invocation hallelujah
    shrift annunciation gentile inge hazan chorale island islands berlin tom toms roman romans
    confederate confederates migrating migrate paddy marchers marcher evacuees evacuee colonists
    colonist fang fangs dwellers dweller pueblo taco tacos occidental mohawk goers goer sahib yanks
    yank yanked denizens denizen shogun geisha dalmatian westerner westerners hajji doric bade
    siamese berserk viking raiders raider buccaneers buccaneer mayhem outlawed outlaw outlaws
    outlawing ganges robes robe peddling peddle cutthroat henchmen henchman infraction infractions
    crucifixion violators violator causa progressive progressives legislators legislator legislate
    margrave viceroy ideological elector electors pluralism militaristic mutiny mutineers filibuster
    filibusters governorship tariff tariffs stockpile stockpiles stockpiled waged waging scion babe
    babes matron progeny forebears forefathers gran jnr grooming groomed groom brethren contra bai
    hysterical hysteria delirious rabid xenophobia xenophobic taurus ail ails weal coral embrace
    antidote maniac lunatic warden ducal dominions evade bugger fuck fucked fucking fucker fuckers
    smooch poof"""
)

# What to do with a text, what kind of text, its parts, its manner, and the words around them.
INSTRUCTIONS = _words(
    """write rewrite rephrase reword paraphrase summarise summarize summary summaries abstract outline
    translate translation compare comparison contrast explain explanation describe description
    define definition classify classification categorise categorize category label list enumerate
    bullet bullets numbered item items headline title heading subtitle slogan tagline caption
    subject tldr json xml yaml html csv markdown table tables column columns row rows format
    formatted formatting template schema key keys paragraph paragraphs sentence sentences word words
    phrase phrases line lines text texts passage excerpt section sections chapter document documents
    article essay report letter letters email emails mail message messages memo note notes blog
    tweet speech script story stories poem poetry haiku limerick lyrics verse rhyme dialogue dialog
    conversation review feedback comment comments code coding function variable variables algorithm
    programming python javascript sql query regex loop debug refactor implement implementation
    question questions answer answers answering ask asked reply respond response responses prompt
    prompts task tasks instruction instructions instruct input inputs output outputs example
    examples sample context assistant chatbot model user step steps generate generated generating
    create created creating compose draft suggest suggestion suggestions recommend recommendation
    recommendations propose brainstorm idea ideas provide give identify extract extraction find
    detect determine choose select sort rank rating evaluate assess analyse analyze analysis
    critique correct corrected correction proofread edit edited editing grammar grammatical spelling
    spell punctuation typo typos improve improved improvement shorten shortened expand simplify
    simplified elaborate clarify combine convert conversion transform replace remove insert add
    append fill highlight quote cite citation citations reference references bibliography calculate
    compute solve solution estimate count predict verify check checklist itinerary agenda recipe
    pros cons argument arguments persuasive formal informal polite politely friendly professional
    casual concise concisely brief briefly short shorter detailed detail details simple simply
    clearly plain neutral tone style voice manner audience language english active passive tense
    plural singular synonym synonyms antonym antonyms noun nouns verb verbs adjective adjectives
    adverb adverbs pronoun pronouns syllable syllables vocabulary meaning sentiment topic topics
    theme themes fact facts content following below above using use include included contain
    containing mention mentioned avoid exactly maximum minimum limit length please help show tell
    read reading reason reasoning imagine pretend roleplay persona scenario faq newsletter resume cv
    biography bio advertisement advert ad brochure pitch tutorial guide lesson quiz flashcards
    multiple choice false statement statements appropriate relevant specific alphabetical
    alphabetically chronological chronologically writing written wrote rewriting rewritten
    summarising summarizing summarised summarized translating translated comparing compared listing
    listed describing described explaining explained poems essays articles headlines titles memos
    drafts drafted quotes quoted classifying labels labelled labeled categories rephrased
    paraphrased outlines outlined numbering indent bold italic italics emoji hashtags hashtag cover
    pun joke jokes riddle riddles metaphor metaphors analogy analogies acronym acronyms glossary
    thesis hypothesis hypotheses transcript subtitles screenplay monologue sonnet sonnets prose
    narrative fiction plot brainstorming proofreading formality jargon layman beginner beginners
    provided specified requested requirements factual accurate creative solutions helpful realistic
    logical diverse"""
)

# Companies, authorities and clubs that are one word; the clear cases from which the others are told.
ORGANISATIONS = _words(
    """harvard stanford yale princeton microsoft google yahoo apple ibm intel oracle cisco dell nokia
    motorola sony samsung toshiba hitachi panasonic siemens philips ericsson alcatel vodafone
    verizon sprint comcast viacom disney paramount walmart tesco carrefour ikea nestle unilever
    danone pepsi pepsico heineken bayer pfizer merck novartis roche sanofi glaxosmithkline
    astrazeneca monsanto basf boeing airbus lockheed raytheon northrop bombardier embraer toyota
    honda nissan mazda mitsubishi hyundai kia volkswagen bmw daimler porsche audi renault peugeot
    citroen fiat chrysler chevron exxon exxonmobil bp conocophillips petrobras gazprom lukoil
    rosneft yukos enron halliburton citigroup citibank jpmorgan barclays hsbc ubs deutsche rbs
    lloyds santander bbva unicredit wachovia nasdaq nyse reuters bloomberg bbc cnn nbc cbs abc espn
    msnbc pbs npr nato unesco unicef opec interpol fbi cia nsa kgb mossad nasa esa fifa uefa nba nfl
    nhl nascar ioc facebook twitter youtube myspace linkedin wikipedia ebay paypal netflix spotify
    uber airbnb whatsapp instagram tiktok zoom slack amazon fedex ups dhl lufthansa ryanair easyjet
    qantas aeroflot accenture deloitte kpmg pricewaterhousecoopers mckinsey adidas nike reebok gucci
    prada mattel hasbro nintendo sega atari adobe autodesk symantec netscape qualcomm nvidia amd
    openai anthropic mozilla novell compaq lenovo huawei asus acer caterpillar deere honeywell
    dupont alcoa arcelor mittal thyssenkrupp allianz axa aviva aig prudential greenpeace hamas
    hezbollah oxfam mcdonald starbucks kfc juventus arsenal everton liverpool milan benfica ajax"""
)

# Ordinary words that WordNet does not hold: they pass as dictionary words.
ORDINARY = _words(
    """else cannot everybody anybody somebody nobody versus whereas whenever wherever whichever whoever
    whomever whatever amongst whilst ought beside besides anytime someday gonna gotta wanna albeit
    amid anymore everyday afterward afterwards towards unto upon throughout alongside aboard despite
    etc via ok okay oh ah ha hey hi hello bye wow yeah yep nope hmm huh oops please thanks thankyou
    goodbye cheers congrats online offline internet website websites webpage webpages homepage blog
    blogs blogger blogging podcast podcasts webinar webinars app apps smartphone smartphones wifi
    bluetooth broadband login logout username usernames signup checkout popup screenshot screenshots
    selfie selfies hashtag hashtags emoji emojis download downloads downloaded downloading upload
    uploads uploaded uploading inbox spam webcam laptop laptops desktop touchscreen startup startups
    fintech cryptocurrency crowdfunding freelancer freelancers freelance outsource outsourced
    outsourcing onboarding offboarding workflow workflows roadmap roadmaps timeline timelines
    deadline deadlines checklist checklists stakeholder stakeholders milestone milestones benchmark
    benchmarks dataset datasets database databases backend frontend middleware plugin plugins
    rollout rebrand rebranding ceo cfo cto healthcare childcare skincare nonprofit multi pre non
    anti meetup roommate roommates flatmate flatmates teammate teammates coworker coworkers
    bestseller bestsellers gameplay playlist playlists livestream airstrike airstrikes bailout
    ceasefire offseason midfielder midfielders striker goalkeeper schoolchildren policymakers
    policymaker protestors newswire miniseries takeaway takeaways vegan vegans gluten smoothie
    smoothies latte barista hoodie hoodies sneakers ebook ebooks tv dvd cd pdf usb gps suv pc pcs
    phd mba vip faq diy ltd inc llc plc corp dept pm am gmt edt est pst pdt utc bst kg km cm mm mph
    kmh ml whereby wherein whereupon amidst lest hotline hotlines realignment frontline hydropower
    biodiesel keyword keywords standalone analytics resold viewership intergovernmental multimillion
    statehood versa onboard yourselves oneself others lookalike"""
)

# Words that no list of names may hold: days and holidays have a kind of their own or none.
NO_NAMES = _words(
    """monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays
    fridays saturdays sundays mon tue tues wed thu thur thurs fri sat sun christmas easter halloween
    thanksgiving def olympic olympics dlrs eds ipo iphone ipod com gdp fc worldsources pretax dna
    rna prix los las del der von und les des serie nobel medicare medicaid ramones freemason
    freemasons powerpoint photoshop govt recep"""
)

# Everyday words that the press writes mostly as names: with a capital a name, in lower case a word.
EVERYDAY = _words(
    """baker barber barker basil batten bean beau birch bliss booker bracken brewer bullock bunting butcher
    butler carmine carol carver chamberlain chandler chow clement coon cooper cotter creamer croft
    curry curt cutler daisy dale dean derrick dill dirk dolly drake draper duff dyer earl eddy emery
    fay fielder finch fink fisher fowler freedman fryer fry gable gale garland garret gill gist glen
    granger griffin haddock hale hare harper hart hazel heath heather herb herring hinds holly hood
    hooker hoover hopper huff iris jasmine jasper jean kip kitty lance lea leach lily ling lino
    lister looney mallard marlin marquis marsh martens mason mead mercer miller mink missy moll
    morel mouton mulligan nada nan nix opal parry partridge pate patsy patty peeler pitman pollard
    pollock porter prentice proctor provost raven reed reeve roach robin rod roe romaine rood roper
    rosemary rowan ruby ruff sander sawyer sexton shanks shaver shearer shoemaker singleton skinner
    slater sledge sol sparrow starling stiles stockman stoker stoner stringer swain tad tam tan
    tanner tiller tinker tod tori trotter tucker turner underwood usher valentine victor viola
    violet warden ware warren waterman weaver welch wheeler whitehead whiting whittle wick wicks
    wolf woodcock woody wren wright aurora savoy"""
)
