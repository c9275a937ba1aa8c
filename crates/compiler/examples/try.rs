#![allow(missing_docs)]
use meshloom_compiler::*; use meshloom_models::*; use meshloom_simulator::*; use meshloom_simulator::program::Ty;
fn main(){
 let spec=std::env::args().nth(1).unwrap(); let items:usize=std::env::args().nth(2).map_or(1,|s|s.parse().unwrap());
 let batch:usize=std::env::args().nth(3).map_or(4,|s|s.parse().unwrap());
 let ty=if std::env::args().nth(4).as_deref()==Some("f16"){Ty::F16}else{Ty::F32};
 let show=std::env::args().nth(5);
 let layers:Vec<usize>=spec.split('-').map(|s|s.parse().unwrap()).collect();
 let g=builders::mlp(&layers,batch,0);
 let m=Machine::parse("small",&std::fs::read_to_string("/tmp/small.toml").unwrap(),&[]).unwrap();
 let x:Vec<f32>=(0..items*batch*layers[0]).map(|i|((i*7919)%1000) as f32/500.0-1.0).collect();
 let c=match compile(&g,&m,&Options{ty,items,skip_zeros:false},&[("x".into(),x.clone())]){Ok(c)=>c,Err(e)=>{println!("{e}");return}};
 if let Some(s)=show { println!("{}",meshloom_compiler::show(&c,&g,&m,&s).unwrap()); }
 let t=std::time::Instant::now();
 let o=match engine::run(&c.program,&m,&engine::Options{probes:c.probes.iter().flat_map(|p|p.at.clone()).collect(),..Default::default()}){Ok(o)=>o,Err(e)=>{println!("{e}");return}};
 let dt=t.elapsed().as_secs_f64();
 println!("cycles {} epochs {:?} active {} {:.1} M/s {dt:.2}s",o.cycles,o.epochs,o.active_pe_cycles,o.active_pe_cycles as f64/dt/1e6);
 let (y,done)=c.outputs[0].values(&o.drains,ty,items);
 // naive
 let mut worst=0f64;
 for it in 0..items { let mut a:Vec<Vec<f64>>=(0..batch).map(|b|(0..layers[0]).map(|k|x[(it*batch+b)*layers[0]+k] as f64).collect()).collect();
  let n=layers.len()-1; let mut ids=g.nodes_in_order().into_iter().filter(|i|matches!(g.node(*i).op,Op::Linear));
  for l in 0..n { let nd=g.node(ids.next().unwrap()); let w=g.tensor(nd.inputs[1]).data.clone().unwrap(); let bb=g.tensor(nd.inputs[2]).data.clone().unwrap();
   a=a.iter().map(|r|(0..layers[l+1]).map(|m|{let s:f64=r.iter().enumerate().map(|(k,v)|v*w[m*layers[l]+k] as f64).sum::<f64>()+bb[m] as f64; if l+1<n {s.max(0.0)} else {s}}).collect()).collect(); }
  for b in 0..batch { for m in 0..layers[n] { let d=(a[b][m]-y[(it*batch+b)*layers[n]+m] as f64).abs(); if !(d<=worst) {worst=d;} } }
 }
 println!("worst {worst:e} done {done:?}");
}
