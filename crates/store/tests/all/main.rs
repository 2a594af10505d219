//! The store on real files: the suite every backend passes, kills, full disks, and speed.

mod crash;
mod data;
mod disk_full;
mod store;
