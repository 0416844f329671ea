"""The demo: a disaster and its undoing, told as it happens on a real appliance."""
