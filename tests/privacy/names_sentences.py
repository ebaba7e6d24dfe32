"""Sentences of `test_names.py`.

A name is written `{type:text}` in its sentence: p(erson), l for a place, o(rganisation), n where the type is
left open; the other words must stay.
"""

NAMED = r"""
{p:Jane Miller} asked for a refund.
Yesterday {p:Jane A. Miller} called.
We spoke to {p:J. Miller} about the lamp.
The car belongs to Mr {p:Long} and his wife.
DEAR MR {p:LONG},
Dear Mrs. {p:Young}, thank you.
Dear Prof. {p:van den Berg}, thank you.
Ask Dr {p:Anne-Marie O'Neil} about it.
{p:Rose Baker} said no.
{p:Rose} said no.
{p:Mark} told me about it.
{n:Mark}'s car is red.
{p:Will Smith} and {p:Grace Hopper} met here.
{p:Rose} and {p:Peter} went home.
I met {p:Peter} and {p:Rose} there.
Then {p:Bill} paid.
Hello {p:Mark}, thanks for the note.
hi {p:mark}, are you there?
hey {p:penny}
saw {p:rose miller} today
i talked to {p:jane} and {p:peter} today
{p:jane miller} lives in {l:munich}
we moved to {l:munich} last year
my {o:ikea} shelf broke
I fly to {l:New York} and then to {l:Los Angeles}.
She lives in {l:Reading} now.
He comes from {n:Bath}.
She works at {o:Miller & Sons Ltd} in {l:Leeds}.
The {o:Bank of Scotland} refused.
He studied at the {o:University of Leipzig}.
{o:Pinnacle Motors} sold it.
{o:Northwind Logistics GmbH} sent the bill.
My account at {o:Barclays} was closed.
We wrote to {o:Siemens AG} twice.
The parcel came from {n:Amazon}.
{o:St Mary's Hospital} wrote back.
I went to {o:Oakwood Primary School} as a child.
{o:Greenfield Dental Clinic} has my records.
My flat is at {l:14 Rose Street}, second floor.
Send it to {l:221b Baker Street} please.
He lives at {l:7 Market Place} in {n:Ely}.
They moved to {l:Lindenstraße 16}.
The office is in {l:Kerkstraat 12}.
{n:José} from {l:Madrid}: {n:José} called.
{p:Jürgen Müller} signed.
{p:Łukasz Wójcik} is my landlord.
{p:Nguyễn} paid the rent.
I owe {n:Zoltán} some money.
{n:Ngozi Okafor} and {p:Wei Zhang} met.
My doctor is {p:Aisha Khan}.
{p:Siobhan} wrote to me.
Regards,\n{p:Mark}
Best,\n{p:Dawn}
Many thanks\n{p:Cliff}
Yours sincerely,\n{p:Rose Small}
Kind regards,\n{p:Ray Lane}\n{o:Lantern Energy}
Love,\n{p:Grace}
Cheers, {p:Pat}
Name: {p:Summer Field}
From: {p:Swan}, {p:Dawn}
To: {p:Rose Park}; Cc: {p:Chase Hardy}
Patient: {p:Ivy Gold}
Attn: {p:Heath Wood}
Customer: {p:Best}, M.
{p:HARRY GOLD}
LAST WILL OF {p:PAT ROSE}
PROFILE OF {p:MARK BAKER}
I WAS CALLED A LIAR BY {n:PENNY} AT THE TILL.
TO THE MANAGER OF {o:AMBERLINE TRAVEL}
DEAR {p:ROSE}, PLEASE CALL.
I SPOKE TO {p:JANE} YESTERDAY.
I SPOKE TO MRS {p:BAKER} YESTERDAY.
| Name | City |\n| --- | --- |\n| {n:Rose} | {n:Bath} |
| {p:Peter Young} | {n:Hull} |
- {n:Mark}\n- {n:Rose}\n- {p:Jane}
{p:Fatima} and I went there.
My sister {p:Joy} is ill.
my brother {p:Frank} drinks.
Ask {n:Faith} or {n:Hope}.
The lawyer, {n:Grant}, knows.
It was {n:Art} who did it.
We met {p:Ken Page} in {l:Paris}.
{p:Boris Johnson} met {p:Angela Merkel} in {l:Berlin}.
I saw Dr {p:Who}?
Her name is {n:Chastity}.
Contact {p:Sanjay Gupta} at the desk.
{p:Sanjay} is ill. Tell {p:Sanjay} to rest.
I met {p:Steel} yesterday. {p:Steel} was tired.
{p:Oliver}'s mother came.
{p:O'Brien} left early.
{n:McDonald} left early.
{n:de la Cruz} left early.
Ms {p:de la Cruz} left early.
{p:Jean-Luc Picard} left early.
We bought it at {o:Tesco}.
He is a nurse at {o:Harbour Clinic}.
{n:Harvard} refused him.
{l:France} and {l:Germany} agreed.
{l:London} is cold.
we met in {l:london} by the river
{l:Karl Johans gate 192} is her address.
{n:Hove}, a rainy day
The witness {p:Josh Hunter} saw it.
Tell {p:Mum Jones} about it.
{p:Abbott} was rude.
The {n:Merriweather} family left.
{p:Nelson Mandela} was there.
Our teacher Ms {p:Sharp} is kind.
{p:Xiomara} and {p:Quetzal} came.
{n:Miller}, {p:Baker} and {p:Cook} signed.
Signed: {p:Forest Ball}
My dear {p:Robin},
Dear {p:Robin},
Dear {p:Robin} and {p:Rose},
Thanks {p:Mark}!
Thank you, {n:Mark}.
{p:ROSE} said no.
MY NAME IS {p:PETER PARK}.
{p:Peter Park} lives at {l:3 Station Road}.
the {o:bbc} called
{p:Kim Jong} left.
{p:Drew} called me. {p:Drew}'s wife, too.
In {l:Battle} it rains.
I was born in {l:Sandwich}.
The train to {l:Crewe} is late.
{p:Maria Gonzalez} is pregnant.
{p:Ahmed} has cancer.
The company {n:Orange} called.
My bank, {n:Monzo}, blocked me.
I work for {n:Shell}.
He sued {n:Boots}.
{p:Penelope Cruz-Smith} won.
{n:Eve}, {p:Adam} and {p:Lily} were late.
{p:Jack} will come; {p:Jill} will not.
Is {n:Rose} coming?
Was {n:Mark} there?
Please ask {n:Mark}.
"{p:Rose} is here," he said.
He said: {p:Rose} is ill.
({p:Rose} knows.)
Our neighbour Mr {p:T} is loud.
I met the {n:Bakers} there.
The {n:Johnsons} moved.
Re: {n:Ward Wall}, born in the spring
{o:Meridian Credit Union} has my money.
{o:Trent Valley NHS Trust} wrote.
She is with {o:Deutsche Bank} now.
The {n:Red Cross} helped.
I was in {l:Addis Ababa}.
He is from {l:South Korea}.
The {l:River Thames} is high.
Flights to {l:São Paulo} are full.
My cousin {p:Chloé} is here.
Mr {p:Bean} laughed? No, Mr {p:Bean}.
Prof {p:Snow} teaches.
Sgt {p:Wolf} arrested {p:Dale Cooper}.
The tenant, {p:Barry Brook}, owes rent.
{p:Barry} owes rent.
{p:Misty} owes rent.
Did {n:Heather} call?
{p:Angel} lives here.
{n:Major Tom} is here.
{n:Victoria} has sons.
I am {n:Dean}.
My name is {p:Dean Street}.
Yours truly, {p:Prudence Best}
""".strip().splitlines()

HARMLESS = r"""
Tell me: On the way home it rained.
Note: In the end we moved.
Answer: At the end of the day, we left.
Please write a letter.
Thanks for the help.
Best regards,
Kind regards,
Yours sincerely,
Yours faithfully,
Many thanks
Invoice
Subject: Invoice
Subject: Question about the bill
Re: Invoice
Notice
Agenda
Summary
# Introduction
## Results and discussion
The rose is red.
A rose by the window.
Mark the page.
Mark my words.
Will you come?
Will it snow?
May I ask?
Bill me later.
Rose wine is nice.
Cook the rice well.
Cooking is fun.
Reading is good for you.
Hope is a good thing.
Love is blind.
Faith moves mountains.
Summer is over.
Spring is near.
Autumn was cold.
The baker sells bread.
Bath time is near.
The long road is wet.
Long days are nice.
Close the door.
The page is missing.
Price and quantity
Terms and conditions
I speak English and French.
My German is poor.
On Monday the office opens late.
On Sundays we rest.
I can use Word and Excel.
Send me the PDF.
The API returns JSON.
My CV is attached.
The HR department called.
VAT is included.
OK, see you.
I think I know.
Dear Sir or Madam,
Dear all,
Hello everyone,
Hi there,
Hello world
To whom it may concern
Write a poem about spring.
Summarise the text.
Translate this into French.
List the main points.
Yes.
No, thanks.
What is the cost?
How do I cook rice?
Who wrote this?
Tel:
Fax:
Dr and Mrs are titles.
P.S. Please call.
The Catholic church is old.
A Muslim friend came.
She is Spanish.
THE DOOR IS OPEN.
PLEASE CLOSE THE DOOR.
THIS IS A COMPLAINT.
NOTICE
COMPLAINT
CURRICULUM VITAE
LAST WILL AND TESTAMENT
HOPE IS A GOOD THING
NO PARKING
- Eggs\n- Milk\n- Bread
Open the file\nRead it
| Name | City |\n| --- | --- |\n| red | blue |
| Who | What | Note |\n|---|---|---|
Skills: Word, Excel, SQL
Status: open
Category: software
Plan B is better.
Vitamin C is healthy.
Type A or B?
He said: "Go home."
What a nice day!
i like to read and cook
the mark on the wall
we had a nice day in the park
good morning all
thanks for reading
hey you there
see you later
this will be long
the bill is due
she has a strong heart
The king lives in a castle.
Snow fell last night.
Stone is hard.
Cash is king.
Parking is free.
Gold is rare.
Steel is strong.
Black and white
Young and old
Rich and poor
Sharp knives cut well.
Small things matter.
Nice weather today.
Good luck!
Have a nice trip!
Happy birthday!
Merry Christmas!
The weather in spring was nice.
Are you free on Friday?
Call me before Tuesday.
The internet is down.
It was Monday.
And so on.
Brown bread and butter
Fish and chips
Green tea helps.
Wood burns.
Rain or shine
Forest fires spread.
Light rain fell.
Hard work pays.
Best of luck!
Drive safely.
Grant money is short.
Chase the ball.
""".strip().splitlines()
