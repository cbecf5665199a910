"""Every refusal before a model loads: each check takes the options and yields one sentence for each problem."""
