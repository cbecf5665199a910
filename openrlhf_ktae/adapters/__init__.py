"""Token credit for other trainers. Each module needs its trainer's library, and none needs OpenRLHF."""
