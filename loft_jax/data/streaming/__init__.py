"""Images that stay in their files: when each of them is needed, and the processes that decode them."""
