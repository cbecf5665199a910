"""KTAE for other trainers; each module needs its own library, none needs OpenRLHF."""
