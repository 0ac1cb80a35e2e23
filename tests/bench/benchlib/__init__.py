"""What tests/bench/run and tests/bench/floor-explore share."""
