"""Train one model on columns that two parties have about the same people, and use it, with only embeddings
and their gradients between them.

The *feature party* has columns; the *label party* has the label, and columns of its own or none. Each runs a
bottom model on its columns; the label party's top model joins both embeddings and gives the loss.
Threat model: both are curious: each knows its own rows and model, and reads all that it is sent.
Does not protect: what embeddings tell of features, and gradients of labels; the noise of the job bounds the
first, `transom audit` measures both. Who is in both files, batches, sizes and times are known to both.
Source: Liu et al., arXiv 2510.12494 (PubSub-VFL); Vepakomma et al., arXiv 1812.00564. Own variant.
"""
