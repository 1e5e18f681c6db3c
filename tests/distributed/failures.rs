pub fn join_only() {}
pub fn step(_: &str) {}
pub fn settings() {}
