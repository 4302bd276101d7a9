"""What clients do inside guests, as the guest's own users."""
