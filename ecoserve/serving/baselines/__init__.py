"""What only the compared policies use: the paper's and its variants, and the systems that it compares with."""
