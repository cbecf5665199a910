"""Every refusal before a model loads. Each check takes the options and yields one sentence for each problem."""
