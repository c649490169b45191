"""BlackVIP (Oh et al., CVPR 2023, arXiv:2303.14773): prompts for a model of which only the answers are known."""
