"""Every generated op against its equations in fp64."""
