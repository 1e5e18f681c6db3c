pub fn of_one_rank() {}
