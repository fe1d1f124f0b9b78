//! Effects: everything that touches the machine.
