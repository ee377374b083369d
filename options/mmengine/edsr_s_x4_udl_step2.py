# UDL step 2, EDSR-S x4 on DIV2K with the authors' schedule, as in options/train_udl_step2.yml.
_base_ = ['edsr_s_x4_udl_step1.py']

model = dict(generator=dict(type='EDSRTwo'), pixel_loss=dict(type='UDL'))
load_from = 'work_dirs/edsr_s_x4_udl_step1/iter_30000.pth'  # or experiments/train_udl_step1/models/net_g_latest.pth

param_scheduler = dict(milestones=[50000])
train_cfg = dict(max_iters=100000)
