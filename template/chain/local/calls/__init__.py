"""What extrinsics do: one module a pallet or subject, each with its table `HANDLERS`."""
