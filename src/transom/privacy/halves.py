"""Hand-made seeds of phrases: words that two together say what neither says alone, and phrases no rule finds.

`credit` is no secret and `rating` is none, `credit rating` is. `HALVES` are such words by field, each with
its inflections; a word may be a half in several fields. `WHOLE` are phrases that stand in no dictionary,
`MORE` further words that say it alone.
Threat model: none of its own; all of this is public. Does not protect: a list by hand has gaps.
Source: written for this project, some of it after a reading of what `benchmarks/words_letters.py` shows of
its even letters; the fields are those of `transom.privacy.seeds`.
"""

from __future__ import annotations


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


HALVES: dict[str, frozenset[str]] = {
    "health": _words(
        """health heart blood brain lung liver kidney breast bowel skin bone spine spinal back knee hip ear
        throat stomach chest prostate womb joint nerve nervous muscle muscular immune mental emotional
        chronic acute severe terminal multiple learning eating sleep sleeping panic mood stress restless
        premature nut peanut memory hearing speech vision visual sight weight hair alcohol drink drinking
        substance gambling attention deficit irritable compulsive high low pressure sugar fatigue exhaustion
        personality attack failure disease disorder syndrome condition pain problem illness infection virus
        positive test scan transplant operation treatment therapy tablet pill medicine medication drug
        injection spray dose blocker inhibitor loss impairment impaired difficulty disability breakdown
        dependence dependency abuse habit misuse clinic nurse certificate pump monitor count donor patch
        episode relapse growth lump clot cell replacement deficiency resistance intolerance reaction
        anonymous ward screening smear therapist beta acid reflux valve rhythm bypass graft tumour cancer
        removal physical special needs thoughts stone hot cold iron vitamin stent gastric band dental gum
        tooth nose foot toe shoulder elbow neck wrist ankle vein artery colon bladder hormone diet nutrition
        pregnancy birth sores sore blind sighted walking frame stick oxygen anger management trauma grief
        stage counselling rehabilitation needle donation rod"""
    ),
    "finance": _words(
        """credit debit debt loan bank account card cash money financial payment pay salary income benefit
        universal housing tax council rent mortgage bill rating score history notice default demand
        statutory reminder judgment bailiff limit overdraft trust fund pension retirement redundancy
        severance sick allowance grant voucher food relief hardship scheme settlement consolidation
        repayment payday interest arrears balance saving deposit investment stock option bond portfolio
        estate inheritance offshore claim compensation unemployment social security welfare charity means
        tested wage poor bad negative equity betting creditor net worth bonus expense deduction maintenance
        frozen asset private fortune court cut rise lost savings collector cheque check purchase contract
        minimum living zero winning budget spending subsidy advance sharing lottery jackpot lump sum
        provident mis line union"""
    ),
    "religion": _words(
        """church sunday sabbath friday school bible prayer meeting service study class worship mass holy
        sacred spiritual faith belief believer convert conversion born again fast fasting bar bat first
        confession midnight choir priest parish congregation head scarf headscarf veil retreat pilgrimage
        mission missionary witness elder reverend deacon saint shrine festival feast ceremony vow lay
        preacher scholar practising practicing lapsed observant reform orthodox charismatic lent good ash
        palm eve community baptised baptized pastor youth religious covering dietary rule law fundamentalist
        beads ministry minister temple reading house council server ringer camp healer practice confirmation
        evening committee water washing atonement dues offering grace brethren army humanist vows calling
        orders"""
    ),
    "politics": _words(
        """party labour labor green conservative liberal democratic national republican socialist left right
        far hard wing trade union climate animal rights environmental peace nuclear independence gun
        political election campaign council member membership supporter voter activist organiser organizer
        candidate donor donation delegate volunteer steward leader strike march rally protest demonstration
        movement branch canvasser view opinion leaning affiliation caucus leaflet reform progressive extreme
        radical nationalist separatist grassroots sympathiser sympathizer lobby action group militant
        marcher speaker agent official worker fundraiser committee sit line picket coup regime prisoner
        exile"""
    ),
    "origin": _words(
        """mixed race ethnic minority black white brown native second generation born foreign speaking
        speaker accent tongue language heritage descent background origin roots ancestry asylum seeking
        seeker refugee migrant immigrant status visa permit residence settled illegal alien citizen dual
        nationality passport traveller traveler skin colour color tribal tribe nation skinned arrival
        deportation camp card national law village east eastern west islander island stateless claim
        indigenous first nations creed"""
    ),
    "sexuality": _words(
        """gender sex sexual sexuality orientation identity preference trans transition queen drag fluid
        neutral binary dysfunction drive fertility sperm egg donor birth control coil porn adult film dating
        massage escort worker strip club pride surgery reassignment hormone affair extramarital partner
        marriage couple transmitted dysphoria appearance change clinic app profile life libido swinging site
        video material love triangle open cheating transitioning puberty blocker agency donation habit toy
        addict freezing night bar march hook pill bathhouse parlour parlor"""
    ),
    "crime": _words(
        """car identity drug knife gun weapon sexual indecent public domestic violent petty grievous actual
        bodily harm damage criminal common disorder exposure neglect cruelty money theft fraud assault
        battery driving drunk drunken dangerous careless reckless disqualified carrying possession supply
        dealing dealer offence offense offender record charge caution police bail sentence suspended
        community service probation prison jail conviction warrant arrest curfew restraining order young
        juvenile register registered breach peace contempt attempted conspiracy violence stolen goods false
        imprisonment accounting insider trading handling threatening behaviour behavior burglary robbery
        armed breaking entering illegal resisting obstruction evasion riot affray hacking revenge gang hate
        crime child benefit tax court trial hearing house shop street bicycle cycle dog fighting fight
        driver ban banned speeding shoplifting arson fire setting file offending teenage mob organized
        organised ring racket mail wire evidence witness intimidation intimidating tampering terrorist
        indecency malicious communication communications emergency worker aggravated dodging fare ticket
        penalty points fined jury parking littering sale arms fine tag electronic fake forged bike phone
        plea deal bargain betting rifle reform detention tipping coursing touting mule threat"""
    ),
    "family": _words(
        """family foster adoptive adopted adoption child parental maternity paternity leave custody visiting
        rights battle dispute feud rift placement arranged forced marriage wedding agreement separation
        divorce proceedings support maintenance broken home single lone mother father parent son daughter
        step half sister brother twin birth biological surrogate love secret affair disowned estranged
        former husband wife partner partnership domestic engagement pregnancy teenage unwanted relative
        guardian kinship carer civil reunion fertility row quarrel absent blended test contact joint sole
        shared care counselling therapy living apart runaway teen unmarried second trial empty nest shotgun
        honour kidnap minor legal household breakdown breakup split ex kin social services worker egg donor
        ivf treatment donation late dead access divorcing couple ring decree cot dna contested"""
    ),
}  # fmt: skip

# Concepts whose words of several parts are of a field, though their single words are not.
PHRASE_ROOTS: dict[str, tuple[str, ...]] = {
    "health": (
        "physical_condition.n.1", "treatment.n.1", "medical_care.n.1", "health_professional.n.1",
        "medical_examination.n.1", "dental_appliance.n.1", "fatigue.n.1", "bodily_process.n.1",
    ),
    "finance": (
        "payment.n.1", "fund.n.1", "financial_condition.n.1", "credit.n.2", "financial_loss.n.1",
        "insurance.n.1", "account.n.3", "financial_gain.n.1", "money.n.1", "social_welfare.n.1",
    ),
    "religion": (
        "religious_school.n.1", "spirituality.n.1", "religious_music.n.1"
    ),
    "politics": (
        "political_movement.n.1", "demonstration.n.3", "strike.n.1", "reformer.n.1", "campaign.n.1",
    ),
    "sexuality": (
        "sexual_desire.n.1", "sexual_relationship.n.1", "birth_control.n.1", "libertine.n.1", "lover.n.3",
        "reproductive_organ.n.1", "sexual_love.n.1",
    ),
    "crime": (
        "wrongdoing.n.2", "legal_proceeding.n.1", "punishment.n.1", "offender.n.1", "violence.n.1",
        "legal_action.n.1", "killing.n.2", "confinement.n.3", "due_process.n.1", "fighting.n.1",
    ),
    "family": (
        "family.n.1", "family.n.2", "kinship.n.2", "marital_status.n.1", "marital_relationship.n.1",
        "wedding.n.1", "wedding.n.3", "leave.n.1", "charge.n.5",
    ),
}  # fmt: skip

WHOLE: dict[str, frozenset[str]] = {
    field: frozenset(phrase.strip() for phrase in " ".join(phrases.split()).split(","))
    for field, phrases in {
        "health": """
            special needs, sick leave, sick note, learning difficulties, eating disorder, guide dog, hearing
            aid, walking frame, walking stick, oxygen tank, stair lift, memory loss, hair loss, weight loss,
            gastric band, blood thinners, sleeping pills, sleep apnoea, slipped disc, bad back, frozen
            shoulder, long covid, hot flushes, bed sores, pressure sores, low iron, colour blind, color
            blind, short sighted, long sighted, glass eye, self harm, stage three, stage four, drinking
            problem, mental breakdown, special diet, night sweats, brain fog, mood swings, suicidal
            thoughts, blood test, test results, water retention, on the spectrum, hard of hearing, partially
            sighted, registered blind, day hospital, life support, blood sugar, low mood, stomach bug, heart
            condition, weak heart, bad knee, bad hip, sick pay, day surgery, disabled badge, blue badge,
            support worker, care home, home help, sign language, feeding tube, hip surgery""",
        "finance": """
            food stamps, zero hours contract, free school meals, trust fund, county court judgment, debt
            collector, in arrears, in debt, hire purchase, second mortgage, minimum wage, bounced cheque,
            bounced check, maxed out, final demand, means tested, food parcel, loan shark, negative equity,
            cash in hand, pay cut, pay rise, living wage, credit score, credit union, rent arrears, in the
            red, on benefits, job loss, offshore account, life savings, nest egg, golden handshake, final
            notice, pay day, money troubles, money worries, credit card debt, unpaid bills, unpaid rent,
            lost savings, bank loan, payment plan, debt plan, missed payments, late payments, low income,
            housing benefit, child benefit, tax credits, tax bill, winter fuel payment, council tax, pawn
            shop, sold the house""",
        "religion": """
            born again, head covering, head scarf, sunday school, bar mitzvah, bat mitzvah, prayer mat,
            prayer beads, first communion, midnight mass, bible study, call to prayer, meeting house, lay
            preacher, parish council, choir practice, altar server, bell ringer, house group, faith healer,
            faith school, speaking in tongues, lay reader, holy water, holy orders, day of atonement, prayer
            group, prayer room, salvation army, left the church, confirmation class, vow of silence,
            meditation retreat""",
        "politics": """
            left wing, right wing, far right, far left, hard left, hard right, pro life, pro choice, trade
            union, shop steward, animal rights, civil rights, strike action, peace march, gun control,
            climate change, picket line, free speech, direct action, civil disobedience""",
        "origin": """
            mixed race, asylum seeking, first nations, leave to remain, second generation, first generation,
            foreign born, work permit, green card, mother tongue, native speaker, dual nationality, refugee
            camp""",
        "sexuality": """
            same sex, one night stand, two spirit, drag queen, drag king, morning after pill, open marriage,
            open relationship, non binary, birth control, sex life, sperm donor, egg donor, sperm count, low
            libido, adult film, adult films, sugar daddy, gender fluid, gender neutral, sex worker, strip
            club, dating app, civil partnership, top surgery, in the closet, love triangle, secret lover,
            trans man, trans woman, gay man, gay woman, gay couple, gay bar, bi man, bi woman, lesbian
            couple, queer woman, queer man, slept with, sleeping with, cheated on, friends with benefits,
            sex toy, egg freezing, low sex drive, chosen name, puberty blockers, toy boy, sugar baby, rent
            boy, call girl, lap dance, red light district, massage parlour, massage parlor, the pill,
            morning after, period pain, nude photos, dating profile, dating site""",
        "crime": """
            carrying a knife, drink driving, drunk driving, breach of the peace, community service, hit and
            run, breaking and entering, receiving stolen goods, suspended sentence, penalty points, on
            remand, on bail, on probation, on parole, behind bars, served time, previous convictions, spent
            conviction, money mule, insider trading, tax evasion, street fight, bar fight, speeding ticket,
            driving ban, hate speech, court date, ankle tag, electronic tag, house arrest, unpaid fine, fly
            tipping, hare coursing, fake id, fake passport, death threat, bomb threat, plea deal, plea
            bargain, young offender, fare evasion, court appearance, car theft, bike theft, police record,
            police caution, driving offence, drug dealing""",
        "family": """
            single mother, single father, single parent, parental leave, custody battle, love child,
            arranged marriage, forced marriage, shotgun wedding, trial separation, absent father, absent
            mother, second wife, second husband, first wife, first husband, ex wife, ex husband, half
            brother, half sister, step son, care order, broken home, out of wedlock, living apart, family
            feud, next of kin, only child, in laws, mother in law, father in law, sister in law, brother in
            law, son in law, daughter in law, foster care, birth mother, birth father, birth parents, common
            law, broken engagement, gave up for adoption, given up for adoption, broke up, split up, black
            sheep, decree nisi, decree absolute, late husband, late wife, due date, cot death, baby shower,
            empty nester, unknown father, secret family, couples therapy, child in care, looked after child,
            live in partner, domestic abuse, family secret, family trust, separated parents, lives apart,
            dna test""",
    }.items()
}

# Further words that say it alone, with their inflections.
MORE: dict[str, frozenset[str]] = {
    "health": _words(
        """stutterer triage anaesthetic anesthetic sedation limp lame bedwetting constipation constipated
        diarrhoea diarrhea haemorrhoids hemorrhoids gout sciatica arthritic rheumatism rheumatoid
        osteoporosis fibrosis cystic bifida shingles acne vertigo tinnitus glaucoma cataract cataracts
        conjunctivitis myopia delirium burnout bulimic bingeing overdosed junkie drunkard amphetamine lsd
        nicotine pacemakers defibrillator mammogram colposcopy laparoscopy metastatic tumorous polyp polyps
        nodules fibroids menopausal caesarean cesarean epidural preeclampsia ectopic antenatal prenatal
        postnatal postpartum lithium sertraline fluoxetine diazepam epipen ventolin antihistamine
        antihistamines betablocker codeine naproxen levothyroxine ozempic hrt antiretrovirals
        immunocompromised autoimmune anaphylactic braille prosthetic orthopaedic orthopedic physio
        chiropractor osteopath dietitian dietician psych sanatorium palliative reflux angioplasty bypass
        dyspeptic dermatitis neuralgia neuropathy sepsis jaundice anemic thrombosis embolism ischaemia
        ischemia arrhythmia tachycardia fibrillation sarcoma myeloma neuroma glioma meningitis encephalitis
        hydrocephalus haemophilia hemophilia haemophiliac colitis crohn diverticulitis appendicitis
        appendectomy gastritis pancreatitis nephritis cystitis tonsillitis sinusitis laryngitis rhinitis
        tendonitis bursitis osteoarthritis fibromyalgia cretin dyscalculia aphasia apraxia ataxia chorea
        agoraphobia agoraphobic claustrophobia claustrophobic phobia phobic hypomania mania dissociative
        selfharm schizoaffective narcissist sociopath psychopath"""
    ),
    "finance": _words(
        """overdue unpaid cashflow pawn pawned pawning subsistence pauper paupers indigence usury
        repossessed garnished sequestration insolvencies overspent heirloom bequeathed bequeath probate
        legacies trustee trustees endowment annuities royalties freeloader giro dole unwaged jobcentre
        jobseeker jobseekers refinance refinanced refinancing subprime bailiffs severance payoff tuition
        bursary bursaries superannuation bailout foodbank moneyed prosperous cashless prepaid taxpayer
        taxpayers untaxed maxed"""
    ),
    "religion": _words(
        """advent shiva menorah tefillin hanukah bris torahs hasidic haredi ultraorthodox kabbalah seder
        matzah matzo iftar suhoor ummah sharia mullah ayatollah jumah puja darshan holi navratri dharma
        karma nirvana nunnery friary abbot abbess friar deacon verger sacristan altar sacrament eucharist
        confessional lutheranism calvinism methodism adventist evangelist evangelism pentecostalism
        mormonism amish mennonite hutterite wicca wiccan druid paganism shaman shamanism rastafarian
        rastafarianism zoroastrian parsi druze alawite ismaili ahmadi coptic maronite chaldean unitarian
        secularist nonbeliever unbeliever freethinker theist deist proselyte blasphemy blasphemous heresy
        churchgoer churchgoers churchgoing crucifix cassock vestry chaplain chaplaincy catechism christened
        kirtan langar turban kirpan mezuzah converts tithe tithes zakat churchwarden choirboy acolyte
        novitiate convents salvation"""
    ),
    "politics": _words(
        """trotskyist leninist stalinist maoist bolshevik syndicalist brexiteer thatcherite antifascist
        suffragist abolitionist secessionist unionism loyalist loyalists irredentist jingoist supremacist
        supremacists klan klansman neofascist ukip pacifist pacifists pacifism strikebreaker striker
        demonstrator demonstrators electioneering caucus caucuses councilwoman councilman alderman ideologue
        propagandist sympathiser sympathizer revolutionary revolutionaries reformist nonunion lockout
        walkout leafleting placard placards picketer"""
    ),
    "origin": _words(
        """quadroon creole afrikaner maori aborigine inuit eskimo metis sami lapp basque catalan breton
        cornish manx flemish walloon sinti eurasian pakeha chicano chicana hispanics latinx cherokee navajo
        sioux apache hopi cheyenne iroquois maasai kikuyu tutsi hutu oromo amhara berber assyrian kurd kurds
        turkmen uzbek kazakh tajik kyrgyz mongolian tibetan hmong sinhalese gujarati marathi telugu malayali
        kashmiri pashtun balochi sindhi hazara windrush diaspora expatriates emigre emigres repatriate
        deportee deportees overstayer passportless tribeswoman complexion accented foreigners natives"""
    ),
    "sexuality": _words(
        """sterile sterility vasectomy impotency frigid foreplay fellatio nymphomaniac sadomasochism
        sadomasochist masochist masochism fetishist voyeur voyeurism exhibitionist exhibitionism cuckold
        mistress mistresses concubine courtesan philanderer philandering womanizer womaniser adulterer
        adulteress affair affairs bicurious demisexual aromantic genderfluid genderqueer agender androgynous
        hermaphrodite transitioned transwoman transman deadname misgendered crossdressing lgb dyke
        lesbianism sapphic sodomite gigolo hooker pimp whorehouse camgirl dysphoric pansexuality polygamist
        hpv genitalia truvada unprotected spermicide iud hookup sexting bondage throuple estrogen oestrogen
        testosterone transmasculine transfeminine poly kink swinging vaginismus grindr tinder cheated"""
    ),
    "crime": _words(
        """poaching poacher poachers thieving thievery pilfer pilfering pilfered housebreaking housebreaker
        carjacking carjacked carjacker forger counterfeiter counterfeit embezzler blackmailer extortionist
        hoaxer swindler swindled conman conmen phishing hacker hackers cyberstalking lewd lewdness
        soliciting pimping bigamy bigamist patricide femicide genocide lynching lynched strangled strangling
        strangulation knifed brawl brawling affray riot rioter rioting rioters looter joyrider breathalyser
        breathalysed breathalyzer asbo borstal recidivist recidivism bailed remanded remand arraigned
        arraignment custodial fugitive fugitives absconded abscond absconding moonshiner launderer
        pyromaniac vandalise graffiti slanderous libellous perjurer evader dodger stowaway trafficked
        machete espionage treasonous misconduct misappropriate malfeasance kickback kickbacks truancy truant
        flytipping touting ringleader getaway accomplice accomplices alibi forgeries"""
    ),
    "family": _words(
        """feud feuding prenup prenuptial postnuptial disown disowned disowning disinherited disinherit
        jilted elopement cohabitee cohabitation bastard lovechild fatherless motherless parentless
        stepsibling quadruplets quintuplets adoptees birthmother wardship guardianship orphanage orphanages
        childcare visitation betroth betrothal nuptials nuptial bridegroom matrimony matrimonial spousal
        widowhood stillbirth childfree polyandry bigamous consanguinity kinsfolk relatives auntie aunty
        gramps stepchildren stepparent stepparents coparent coparenting runaways estrangement annulment
        annul annulled nisi stillborn coparented godchild remarriage breakup"""
    ),
}  # fmt: skip
