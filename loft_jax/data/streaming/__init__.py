"""Images that stay in their files: which are needed when, and the processes that decode them."""
