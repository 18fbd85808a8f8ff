//! What needs no systemd: the command line as its users see it, the shipped files, and the contract with D-Bus.

#![cfg(test)]

mod cli;
