"""Causal pictures of a model: which layers, neurons and edges its margin rests on, and when there is nothing to say.

TransformerLens's `tools.analysis` measures much of this, through a bridge around a model. Here the model is one that
somebody else is training, perhaps with an adapter, often with grouped-query attention, and hundreds of pairs of prompts
share a budget of seconds; so it is looked at by this project's own hooks, and tests hold what overlaps to the library's
numbers:

* `attribution_patching`: edges and `faithfulness`, which refuse grouped-query attention and run one pair of prompts, by
  `attribution`, `graph` and `faithfulness` (equal in tests/unit/test_circuit_edges.py);
* `interchange` exchanges a subspace of one site; `patching` exchanges the whole activation, at every layer (the
  project's subspace interchange, equal to the library's, is in `decomposition/interchange`);
* `sparse_probing` fits a probe on the few best neurons of one split; `neurons` tests each neuron, corrected over all,
  replicated, and against the time before training, and `layer_probes` keeps pairs whole in its folds;
* `projection_kernel` compares subspaces, of which these pictures have none (used in tests/unit/test_rank.py).
"""
