"""Fine-tune a model of one party on texts of another, and use it, with only hidden states between them.

The customer runs the front (embedding and k blocks), adds noise and sends; the vendor runs the blocks after
it, with an adapter in them. Labels and loss are the vendor's or, in the U-shape, stay with the customer.
Threat model: the vendor is curious: it knows the model and the noise's law, and reads all that it is sent.
Does not protect: what the noise leaves to read in the states, and gradients that go back; audit both.
Source: Shen et al., arXiv 2312.15603; the U-shape: Vepakomma et al., arXiv 1812.00564. Own variant.
"""
