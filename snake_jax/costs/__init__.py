"""What training costs: FLOPs and bytes from shapes, and what compilers say."""
