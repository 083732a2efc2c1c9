"""How good a search is: metrics, the field's protocols, and the evaluation of a folder of descriptors."""
