"""What only the paper needs: its claims checked, its Table 1, minority collapse."""
