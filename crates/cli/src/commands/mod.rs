//! One file per group of commands; each reads as the story of what the command does.

pub mod apps;
pub mod audit;
pub mod config;
pub mod deploy;
pub mod doctor;
pub mod flows;
pub mod login;
pub mod moving;
pub mod ready;
pub mod schedules;
pub mod secrets;
pub mod signing;
pub mod status;
pub mod talk;
pub mod tenant;
pub mod top;
pub mod up;
pub mod why;
pub mod wiring;
