//! Parts of a model whose matrices come when they are needed and go afterwards, while the next ones are on their way.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{no_grad, Device, Kind, Tensor};

use super::order::Order;
use crate::device::copies::Copies;
use crate::device::trace::check_not_traced;
use crate::error::{refuse, Result};
use crate::pages::{is_mapped, Pages};
use crate::storage::read_ahead::ReadAhead;

/// The start of a matrix in a tile is a multiple of so many bytes, as kernels like it.
const ALIGNMENT: i64 = 256;

/// A matrix of the model, by the name and the handle of its variable.
pub(in crate::models) type Matrix = (String, Tensor);

/// The place of a part in a stream of parts.
#[derive(Debug, Clone)]
pub(in crate::models) struct Stay {
    stream: Arc<Mutex<Stream>>,
    part: usize,
}

#[derive(Debug)]
struct Stream {
    order: Order,
    way: Way,
}

/// The way in which matrices come.
#[derive(Debug)]
enum Way {
    /// Pages of the file's map.
    FromDisk(ReadAhead),
    /// Copies of the host's memory.
    FromHost(Moved),
}

/// Parts whose matrices are moved to a device: while a part is entered, its variables are views of its tile there.
#[derive(Debug)]
struct Moved {
    copies: Copies,
    parts: Vec<Vec<Placed>>,
    entered: Option<usize>,
}

/// A matrix in the tile of its part.
#[derive(Debug)]
struct Placed {
    name: String,
    variable: Tensor,
    /// Its memory on the host.
    host: Tensor,
    start: i64,
}

impl Stay {
    /// A stay for each part. The matrices are on the host.
    ///
    /// # Errors
    /// `Unsupported` if a matrix is not part of a file's map, on the CPU, or for devices other than CUDA's.
    pub(super) fn of_parts(parts: Vec<Vec<Matrix>>, device: Device) -> Result<Vec<Stay>> {
        let count = parts.len();
        let way = match device {
            Device::Cpu => Way::FromDisk(ReadAhead::of(&parts)?),
            device => Way::FromHost(Moved::new(parts, device)?),
        };
        let stream = Arc::new(Mutex::new(Stream { order: Order::of(count), way }));
        Ok((0..count).map(|part| Stay { stream: stream.clone(), part }).collect())
    }

    /// True for a matrix that is a part of a file's map.
    pub(super) fn is_possible((_, variable): &Matrix) -> bool {
        is_mapped(variable)
    }

    /// Gives back the memory of a matrix of which a few rows were needed, if it is a part of a file's map.
    pub(in crate::models) fn give_back(&self, matrix: &Tensor) -> Result<()> {
        Pages::of(matrix)?.as_ref().map_or(Ok(()), Pages::give_back)
    }

    /// Called before each use of the part.
    pub(in crate::models) fn enter(&self) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = stream.order.enter(self.part) else { return Ok(()) };
        match &mut stream.way {
            Way::FromDisk(disk) => disk.enter(self.part, next),
            Way::FromHost(moved) => moved.enter(self.part, next),
        }
    }
}

impl Moved {
    fn new(parts: Vec<Vec<Matrix>>, device: Device) -> Result<Self> {
        let mut tiles = Vec::new();
        let mut starts = Vec::new();
        for part in &parts {
            let (mut end, mut of_part) = (0, Vec::new());
            for (_, variable) in part {
                of_part.push(end);
                let bytes = variable.numel() * variable.f_kind()?.elt_size_in_bytes();
                end += (bytes as i64 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            }
            let tile = Tensor::f_empty([end], (Kind::Uint8, Device::Cpu))?;
            for ((_, variable), start) in part.iter().zip(&of_part) {
                no_grad(|| -> Result<()> {
                    Ok(view(&tile, *start, variable)?.f_copy_(variable)?)
                })?;
            }
            tiles.push(tile);
            starts.push(of_part);
        }
        let copies = Copies::new(tiles, device)?;
        let mut placed = Vec::new();
        for (at, (part, starts)) in parts.into_iter().zip(starts).enumerate() {
            let mut of_part = Vec::new();
            for ((name, mut variable), start) in part.into_iter().zip(starts) {
                let host = view(copies.tile(at), start, &variable)?;
                variable.f_set_data(&host)?;
                of_part.push(Placed { name, variable, host, start });
            }
            placed.push(of_part);
        }
        Ok(Moved { copies, parts: placed, entered: None })
    }

    fn enter(&mut self, part: usize, next: Option<usize>) -> Result<()> {
        check_not_traced("a matrix that is streamed to a device")?;
        let Moved { copies, parts, entered } = self;
        for Placed { name, variable, host, .. } in &parts[part] {
            if variable.data_ptr() != host.data_ptr() {
                refuse!(
                    BaseChanged,
                    "'{name}' is streamed, and has another storage than it was loaded with: leave it out of \
                     'modules_to_save' and of what moves variables, or load the model without 'streamed'"
                );
            }
        }
        let bytes = copies.enter(part, *entered)?;
        for Placed { variable, host, start, .. } in &mut parts[part] {
            variable.f_set_data(&view(bytes, *start, host)?)?;
        }
        if let Some(left) = entered.replace(part) {
            back(&mut parts[left])?;
            copies.leave(left)?;
        }
        next.map_or(Ok(()), |next| copies.bring(next, Some(part)))
    }
}

/// The variables are those of the host again.
impl Drop for Moved {
    fn drop(&mut self) {
        if let Some(entered) = self.entered {
            let _ = back(&mut self.parts[entered]);
        }
    }
}

fn back(part: &mut [Placed]) -> Result<()> {
    for Placed { variable, host, .. } in part {
        variable.f_set_data(host)?;
    }
    Ok(())
}

/// The bytes of a tile from `start` on, as a tensor like another.
fn view(tile: &Tensor, start: i64, like: &Tensor) -> Result<Tensor> {
    let kind = like.f_kind()?;
    let bytes = (like.numel() * kind.elt_size_in_bytes()) as i64;
    Ok(tile.f_narrow(0, start, bytes)?.f_view_dtype(kind)?.f_view(&like.size()[..])?)
}
