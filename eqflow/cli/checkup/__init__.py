"""What `eqflow doctor` looks at: the installation, what it computes, and where it may write."""
