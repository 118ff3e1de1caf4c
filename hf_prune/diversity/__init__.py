"""How varied a dataset is: numbers for the whole of it, and what each row adds."""
